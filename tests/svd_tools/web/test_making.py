"""What the model's process reports: steps with the time left, previews by a linear map, and results with settings."""

import io
import time
from base64 import b64decode
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.video_writer import read_metadata
from svd_tools.web.making import Maker, PictureRequest, Progress, Steps, VideoRequest, Weights
from svd_tools.web.preview import Preview, fit_colours, to_colours


def test_steps_are_reported_with_the_time_left():
    reports = []
    for _ in Steps("sampling", reports.append)(range(4)):
        time.sleep(0.02)
    assert [(report.stage, report.done, report.total) for report in reports] == [("sampling", i, 4) for i in range(5)]
    left = [report.seconds_left for report in reports]
    assert left[0] is None and left[-1] == 0 and 0.05 < left[1] < 1 and left[3] < left[1]


@pytest.fixture
def make(monkeypatch):
    """A maker whose two pipelines are stand-ins, and what these were made and updated with."""
    log, engine = [], SimpleNamespace(scale_factor=1.0)

    class StandIn:
        def __init__(self, config, checkpoint, **options):
            log.append(("new", checkpoint, options))
            self.engine, self.settings = engine, {"checkpoint": checkpoint}
            self.height, self.width, self.crop_offset, self.fps = 64, 64, (0.5, 0.5), options.get("fps", 60)

        def update(self, **options):
            log.append(("update", options))

        def encode(self, prompt, negative_prompt):
            return prompt, negative_prompt

        def __call__(self, given, seed):
            for _ in self.engine.progress("sampling")(range(2)):
                pass
            picture = np.full((64, 64, 3), seed, np.uint8)
            return picture if isinstance(given, tuple) else np.stack([picture, picture // 2])

    monkeypatch.setattr("modules.pipeline.SVDPipeline", StandIn)
    monkeypatch.setattr("gm.text_to_image.StableDiffusionPipeline", StandIn)
    return Maker(None, "CPU"), log


def test_a_video_in_every_format_and_a_model_loaded_once(make, tmp_path):
    maker, log = make
    Image.new("RGB", (90, 64), "red").save(tmp_path / "red.png")
    weights, reports = Weights("c/svd_tiny.yaml", "m.safetensors"), []
    for seed, fps in ((7, 12), (8, 60)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        request = VideoRequest(weights, {"fps": fps}, seed, str(folder), str(tmp_path / "red.png"), "my <b>cat.png")
        settings = maker(request, reports.append)
        assert settings["seed"] == seed and settings["image"] == "my <b>cat.png"
        assert settings["SVD"] == {"config": "c/svd_tiny.yaml", "checkpoint": "m.safetensors"}
    assert [name for name, *_ in log] == ["new", "update"] and log[0][2]["lora_scale"] == 1.0
    made = sorted(path.name for path in (tmp_path / "7").iterdir())
    assert made == ["my_b_cat_seed7.gif", "my_b_cat_seed7.mp4", "my_b_cat_seed7.webp"]
    metadata = [read_metadata(tmp_path / "7" / name) for name in made]
    assert [(each["seed"], each["output_format"]) for each in metadata] == [(7, "gif"), (7, "mp4"), (7, "webp")]
    stages = [report.stage for report in reports if isinstance(report, Progress)]
    assert list(dict.fromkeys(stages)) == ["loading", "conditioning", "sampling", "writing"]


def test_a_picture_of_words(make, tmp_path):
    maker, _ = make
    request = PictureRequest(Weights("sd.yaml", "sd.safetensors"), {"cfg": 4.0}, 9, str(tmp_path), "a fox", None)
    settings = maker(request, lambda report: None)
    assert (settings["prompt"], settings["negative_prompt"], settings["SD"]["config"]) == ("a fox", None, "sd.yaml")
    assert read_metadata(tmp_path / "picture.png") == settings
    assert np.asarray(Image.open(tmp_path / "picture.png")).mean() == 9


def linear_world(rng, channels):
    """(an affine map, latents (t, z, h, w), the colours that the map gives them)."""
    colours = np.concatenate([rng.uniform(-20, 20, (channels, 3)), np.full((1, 3), 120.0)])
    latents = rng.uniform(-1, 1, (3, channels, 12, 20))
    pixels = np.einsum("tzhw,zc->thwc", latents, colours[:-1]) + colours[-1]
    return colours, latents, np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def test_a_map_from_latents_to_colours_is_found_from_one_picture():
    for channels in (4, 8, 16):
        colours, latents, pixels = linear_world(np.random.default_rng(channels), channels)
        picture = pixels[0].repeat(8, axis=0).repeat(8, axis=1)
        found = fit_colours(latents[0], picture)
        assert np.abs(found - colours).max() < 2
        assert np.abs(to_colours(latents[1:], found).astype(int) - pixels[1:]).max() <= 4


def test_a_picture_of_one_colour_gives_that_colour():
    found = fit_colours(np.zeros((4, 8, 8)), np.full((64, 64, 3), (10, 200, 90), np.uint8))
    assert np.array_equal(to_colours(np.zeros((1, 4, 8, 8)), found)[0, 0, 0], [10, 200, 90])


def test_a_preview_is_a_small_animation():
    _, latents, pixels = linear_world(np.random.default_rng(0), 4)
    reports = []
    preview = Preview(pixels[0].repeat(8, axis=0).repeat(8, axis=1), 5, 0.5, reports.append)
    for _ in range(2):
        preview(SimpleNamespace(concat=2 * latents[:1]), latents[None])
    assert len(reports) == 2 and not any(isinstance(report, Progress) for report in reports)
    head, _, data = reports[1].partition(",")
    with Image.open(io.BytesIO(b64decode(data))) as image:
        assert head == "data:image/webp;base64" and (image.n_frames, image.size) == (3, (20, 12))
        image.load()
        assert image.info["duration"] == 200
