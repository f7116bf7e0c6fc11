"""What the model's process reports: steps with the time left, and previews by a linear map."""

import io
import time
from base64 import b64decode
from types import SimpleNamespace

import numpy as np
from PIL import Image

from svd_tools.web.videos import Preview, Progress, Steps, fit_colours, to_colours


def test_steps_are_reported_with_the_time_left():
    reports = []
    for _ in Steps("sampling", reports.append)(range(4)):
        time.sleep(0.02)
    assert [(report.stage, report.done, report.total) for report in reports] == [("sampling", i, 4) for i in range(5)]
    left = [report.seconds_left for report in reports]
    assert left[0] is None and left[-1] == 0 and 0.05 < left[1] < 1 and left[3] < left[1]


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
