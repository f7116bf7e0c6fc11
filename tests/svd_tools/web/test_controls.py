"""Controls are what the options declare, and say what does not go together."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from gm.config.values import Range
from gm.errors import UserError
from modules.options import VideoOptions
from svd_tools.web.models import find_files
from tests.svd_tools.web import PROJECT

gr = pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -r requirements-page.txt")

from svd_tools.web import controls as web  # noqa: E402

NAMES = (*web.BASIC, *web.CROP, *web.MORE)
OF_THE_MACHINE = {"fuse_kernels", "compile_cache"}  # change nothing that is seen


@pytest.fixture(scope="module")
def found():
    return find_files(PROJECT / "checkpoints")


@pytest.fixture(scope="module")
def model(found):
    return found.models["svd_tiny.safetensors"]


@pytest.fixture(scope="module")
def controls(model):
    with gr.Blocks(analytics_enabled=False):
        return web.make_controls(NAMES, model.defaults(), [])


@pytest.fixture
def values(controls):
    return [control.component.value for control in controls]


def changed(controls, values, **options):
    """The values with some controls' set otherwise; a pair's by its index, as `crop_offset_0`."""
    names = [control.name if control.index is None else f"{control.name}_{control.index}" for control in controls]
    assert set(options) <= set(names)
    return [options.get(name, value) for name, value in zip(names, values)]


def test_every_option_has_a_control_with_its_help(controls):
    assert {control.name for control in controls} == {item.name for item in fields(VideoOptions)} - OF_THE_MACHINE
    for control in controls:
        assert control.component.label and (control.index == 1 or len(control.component.info) > 8)


def test_ranges_and_choices_are_the_declared_ones(controls):
    hints = get_type_hints(VideoOptions, include_extras=True)
    components = {control.name: control.component for control in controls}
    bucket = components["motion_bucket_id"]
    limits = next(item for item in get_args(hints["motion_bucket_id"]) if isinstance(item, Range))
    assert (bucket.minimum, bucket.maximum, bucket.step) == (limits.low, limits.high, 1)
    assert "(1 to 1000)" in components["fps"].info and components["height"].step == 64
    assert [choice for choice, _ in components["sampler"].choices] == list(get_args(get_args(hints["sampler"])[0]))


def test_untouched_they_are_the_model_s_defaults(controls, values, model, found):
    options = web.to_options(controls, values, found)
    assert options == {**{item.name: item.default for item in fields(VideoOptions) if item.name in options},
                       **model.defaults()}  # fmt: skip
    assert web.check(controls, values, model, found) == ("", "")


@pytest.mark.parametrize(
    ("options", "name", "line"),
    [
        ({"fps": 1001}, "fps", "1001 cannot be used; expected a whole number from 1 to 1000"),
        ({"height": 100}, "height", "a multiple of 64 from 64 to 8192, such as 128"),
        ({"tile_size": 64}, "tile_size", "expected 0 or a multiple of 64 from 128"),
        ({"guider": "constant", "min_cfg": 1.5}, "min_cfg", "the constant guider has one scale; give max_cfg alone"),
        ({"lora_scale": 0.5}, "lora_scale", "cannot be used without a LoRA"),
        ({"guidance_interval": "5"}, "guidance_interval", "expected a list such as [0.5,0.5]"),
        ({"guidance_interval": "wide"}, "guidance_interval", "wide cannot be used; expected two numbers"),
        ({"guidance_interval": "5, 1"}, "guidance_interval", "the second sigma is the larger"),
    ],
)
def test_what_does_not_go_together_is_told_by_name(controls, values, model, found, options, name, line):
    told = web.check(controls, changed(controls, values, **options), model, found)
    assert told[0] == name and line in told[1]


def test_an_empty_number_is_the_default(controls, values, model, found):
    values = changed(controls, values, min_cfg=None, guider="constant", fps=None, guidance_interval="[1, 5]")
    options = web.to_options(controls, values, found)
    assert options["min_cfg"] is None and options["fps"] == 7 and options["guidance_interval"] == (1.0, 5.0)
    assert isinstance(options["motion_bucket_id"], int)


SETTINGS = {
    "config": "svd_tiny.yaml", "checkpoint": "svd_tiny.safetensors", "fps": 9, "motion_bucket_id": 200,
    "num_frames": 3, "sampling_steps": 4, "schedule": "AlignYourStepsDiscretization", "crop_offset": [0.1, 0.9],
    "guidance_interval": [0.5, 100.0], "guider": "constant", "min_cfg": 2.0, "max_cfg": 2.0, "lora": None,
}  # fmt: skip


@pytest.mark.parametrize("sampler", ["heun", "HeunEDMSampler"])
def test_a_video_s_settings_come_back(controls, values, model, found, sampler):
    options, title, problems = web.from_settings({"seed": 1, "SVD": {**SETTINGS, "sampler": sampler}}, found)
    assert (title, problems) == ("svd_tiny.safetensors", [])
    updates = web.to_values(controls, options)
    values = [update.get("value", value) for update, value in zip(updates, values)]
    values = [None if value == "none" else value for value in values]
    assert web.check(controls, values, model, found) == ("", "")
    options = web.to_options(controls, values, found)
    expected = {**SETTINGS, "sampler": "heun", "schedule": "ays", "crop_offset": (0.1, 0.9),
                "guidance_interval": (0.5, 100.0)}  # fmt: skip
    assert {name: options[name] for name in expected if name in options} == {
        name: value for name, value in expected.items() if name in options
    }


def test_what_cannot_come_back_is_told(found):
    stored = {"checkpoint": "other.safetensors", "lora": "gone.safetensors", "fps": "many", "sampler": "Unknown"}
    options, title, problems = web.from_settings({"SVD": stored}, found)
    assert title == "" and "fps" not in options
    assert [line for line in problems if "gone.safetensors" in line] and [line for line in problems if "fps" in line]
    assert [line for line in problems if "its model other.safetensors is not among the files here" in line]
    with pytest.raises(UserError, match="another kind"):
        web.from_settings({"prompt": "a text"}, found)
