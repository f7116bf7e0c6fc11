"""Controls are what the options declare, and say what does not go together."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from gm.config.values import Range
from gm.options import PictureOptions
from modules.options import VideoOptions
from svd_tools.web.models import find_files, options_in
from tests.svd_tools.web import PROJECT

gr = pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -r requirements-page.txt")

from svd_tools.web import text_tab, video_tab  # noqa: E402
from svd_tools.web.controls import NO_LORA, Panel  # noqa: E402

OF_THE_MACHINE = {"fuse_kernels", "compile_cache", "checkpoint_sha256"}  # change nothing that is seen
LORAS = {"lora", "lora_scale", "lora_alpha"}  # of videos


@pytest.fixture(scope="module")
def found():
    return find_files(PROJECT / "checkpoints")


@pytest.fixture(scope="module")
def model(found):
    return found.videos["svd_tiny.safetensors"]


@pytest.fixture(scope="module")
def panel(model):
    panel = Panel(VideoOptions)
    with gr.Blocks(analytics_enabled=False):
        panel.add(video_tab.BASIC, model.defaults())
        panel.add(video_tab.MORE, model.defaults(), [])
    return panel


@pytest.fixture
def values(panel):
    return [component.value for component in panel.components]


def changed(panel, values, **options):
    """The values with some controls' set otherwise."""
    assert set(options) <= set(panel.names)
    return [options.get(control.name, value) for control, value in zip(panel.controls, values)]


def test_every_option_has_a_control_with_its_help(panel):
    assert set(panel.names) == {item.name for item in fields(VideoOptions)} - OF_THE_MACHINE
    for control in panel.controls:
        assert control.component.label and (control.index == 1 or len(control.component.info) > 8)
    pictures = {item.name for item in fields(PictureOptions)}
    assert {*text_tab.BASIC, *text_tab.MORE} == pictures - OF_THE_MACHINE - LORAS


def test_ranges_and_choices_are_the_declared_ones(panel):
    hints = get_type_hints(VideoOptions, include_extras=True)
    bucket, fps, height = (panel[name, None] for name in ("motion_bucket_id", "fps", "height"))
    limits = next(item for item in get_args(hints["motion_bucket_id"]) if isinstance(item, Range))
    assert (bucket.minimum, bucket.maximum, bucket.step) == (limits.low, limits.high, 1)
    assert "(1 to 1000)" in fps.info and height.step == 64
    assert [choice for choice, _ in panel["sampler", None].choices] == list(get_args(get_args(hints["sampler"])[0]))


def test_untouched_they_are_the_model_s_defaults(panel, values, model, found):
    options = panel.options(values, found)
    assert options == {**{item.name: item.default for item in fields(VideoOptions) if item.name in options},
                       **model.defaults()}  # fmt: skip
    assert panel.check(values, found, model.check) == ("", "")
    weights, rest = panel.request(values, found, model)
    assert weights.checkpoint.endswith("svd_tiny.safetensors") and weights.lora is None and "offload" not in rest


def test_what_the_model_settles_by_itself_can_be_left_to_it(found):
    panel = Panel(PictureOptions)
    with gr.Blocks(analytics_enabled=False):
        panel.add((*text_tab.BASIC, *text_tab.MORE), {"height": 512, "width": 512, "sampler": "euler", "cfg": 5.0})
    options = panel.options([component.value for component in panel.components], found)
    assert options["schedule"] is options["timestep"] is options["guidance_interval"] is None
    assert (options["cfg"], options["prompt_weights"]) == (5.0, "comfyui")


@pytest.mark.parametrize(
    ("options", "name", "line"),
    [
        ({"fps": 1001}, "fps", "1001 cannot be used; expected a whole number from 1 to 1000"),
        ({"height": 100}, "height", "a multiple of 64 from 64 to 8192, such as 128"),
        ({"tile_size": 64}, "tile_size", "expected 0 or a multiple of 64 from 128"),
        ({"guider": "constant", "min_cfg": 1.5}, "min_cfg", "the constant guider has one scale; give max_cfg alone"),
        ({"lora_scale": 0.5}, "lora_scale", "cannot be used without a LoRA"),
        ({"guidance_interval": "5"}, "guidance_interval", "expected a list such as [0.5,0.5]"),
        ({"guidance_interval": "wide"}, "guidance_interval", "wide cannot be used; expected numbers"),
        ({"lora_alpha": "8"}, "lora_alpha", "cannot be used without a LoRA"),
        ({"lora_alpha": "1, 2"}, "lora_alpha", "expected a number from"),
        ({"guidance_interval": "5, 1"}, "guidance_interval", "the second sigma is the larger"),
    ],
)
def test_what_does_not_go_together_is_told_by_name(panel, values, model, found, options, name, line):
    told = panel.check(changed(panel, values, **options), found, model.check)
    assert told[0] == name and line in told[1]


def test_an_empty_number_is_the_default(panel, values, model, found):
    values = changed(panel, values, min_cfg=None, guider="constant", fps=None, guidance_interval="[1, 5]")
    options = panel.options(values, found)
    assert options["min_cfg"] is None and options["fps"] == 7 and options["guidance_interval"] == (1.0, 5.0)
    assert isinstance(options["motion_bucket_id"], int)


SETTINGS = {
    "config": "configs/svd_tiny.yaml", "checkpoint": "checkpoints/svd_tiny.safetensors", "fps": 9,
    "motion_bucket_id": 200, "num_frames": 3, "sampling_steps": 4, "sampler": "heun", "schedule": "ays",
    "crop_offset": [0.1, 0.9], "guidance_interval": [0.5, 100.0], "guider": "constant", "min_cfg": 2.0, "max_cfg": 2.0,
    "lora": None, "like": "sgm", "noise": "numpy", "resize": "crop",
}  # fmt: skip


def test_a_video_s_settings_come_back(panel, values, model, found):
    options, problems = options_in(SETTINGS, panel.names, panel.hints, found)
    assert (found.title_of(SETTINGS), problems) == ("svd_tiny.safetensors", [])
    updates = panel.values(options, found)
    values = [update.get("value", value) for update, value in zip(updates, values)]
    assert values[panel.names.index("lora") + 1] == NO_LORA and panel.check(values, found, model.check) == ("", "")
    back = panel.options(values, found)
    expected = {**SETTINGS, "crop_offset": (0.1, 0.9), "guidance_interval": (0.5, 100.0)}
    assert {name: back[name] for name in expected if name in back} == {
        name: value for name, value in expected.items() if name in back
    }


def test_what_cannot_come_back_is_told(panel, found):
    stored = {"checkpoint": "other.safetensors", "lora": "gone.safetensors", "fps": "many", "sampler": "Unknown"}
    options, problems = options_in(stored, panel.names, panel.hints, found)
    assert found.title_of(stored) == "" and "fps" not in options
    assert [line for line in problems if "gone.safetensors" in line] and [line for line in problems if "fps" in line]
