"""Figures of videos: on clips whose figures are known."""

import cv2
import numpy as np
import pytest

from data import video_metrics as metrics


@pytest.fixture(scope="module")
def texture():
    """(96, 160, 3) uint8 with detail everywhere."""
    noise = np.random.default_rng(0).uniform(0, 255, (128, 224, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    smooth = (smooth - smooth.mean()) * (50 / smooth.std()) + 128
    return np.clip(smooth, 0, 255).astype(np.uint8)


def pan(texture, step, num_frames=6, size=(96, 160)):
    return np.stack([texture[8 : 8 + size[0], 8 + step * t : 8 + step * t + size[1]] for t in range(num_frames)])


def test_psnr_follows_the_mean_squared_error():
    image = np.zeros((4, 4, 3), np.uint8)
    assert metrics.psnr(image, image) == float("inf")
    assert metrics.psnr(image + 10, image) == pytest.approx(20 * np.log10(25.5))
    assert metrics.psnr(image, image + 10) == metrics.psnr(image + 10, image)
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.psnr(image, image[:2])


def test_colour_drift_is_the_mean_shift_from_the_first_frame():
    frames = np.full((4, 8, 8, 3), 100, np.uint8)
    assert metrics.colour_drift(frames) == 0
    frames[1:, ..., 0] += 9  # one channel of three
    assert metrics.colour_drift(frames) == pytest.approx(3)
    assert metrics.colour_drift(frames[:1]) == 0


@pytest.mark.parametrize("step", [1, 3])
def test_flow_of_a_pan_is_its_speed(texture, step):
    fps = 7
    expected = step * fps / 96
    assert metrics.mean_flow(pan(texture, step), fps) == pytest.approx(expected, rel=0.15)


def test_flow_does_not_depend_on_the_resolution(texture):
    frames = pan(texture, 2)
    small = np.stack([cv2.resize(frame, (80, 48), interpolation=cv2.INTER_AREA) for frame in frames])
    assert metrics.mean_flow(small, 7) == pytest.approx(metrics.mean_flow(frames, 7), rel=0.15)


def test_flow_needs_two_frames(texture):
    assert metrics.mean_flow(texture[None], 7) == 0


def test_flicker_counts_only_what_stands_still(texture):
    still = np.repeat(texture[None, :96, :160], 5, axis=0)
    rng = np.random.default_rng(1)
    noisy = np.clip(still + rng.normal(0, 2, still.shape), 0, 255).astype(np.uint8)
    everywhere = np.ones((4, 96, 160), bool)
    assert metrics.flicker(still, everywhere) == 0
    assert metrics.flicker(noisy, everywhere) == pytest.approx(2 * 2 / np.sqrt(np.pi), rel=0.1)  # mean |N(0, 2·4)|
    half = noisy.copy()
    half[:, :, 80:] = pan(texture, 4, 5, (96, 80))
    static = metrics.static_areas([half, half])
    assert static[:, 10:-10, :60].mean() > 0.9
    assert static[:, 10:-10, 100:].mean() < 0.1
    assert metrics.flicker(half, static) < 1.3 * metrics.flicker(noisy, everywhere)
    assert np.isnan(metrics.flicker(noisy, ~everywhere))


def test_sharpness_falls_with_blur_and_grows_with_noise(texture):
    blurred = cv2.GaussianBlur(texture, (0, 0), 3)
    noise = np.random.default_rng(2).integers(0, 256, texture.shape).astype(np.uint8)
    assert metrics.sharpness(texture[None], texture) == pytest.approx(1)
    assert metrics.sharpness(blurred[None], texture) < 0.3
    assert metrics.sharpness(noise[None], texture) > 3


def test_contact_sheet_shows_the_first_and_the_last_frame():
    clip = np.arange(14, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    sheet = metrics.contact_sheet([clip, clip[::-1]], columns=8, gap=1)
    assert sheet.shape == (2 * 5 - 1, 8 * 7 - 1, 3)
    assert (sheet[0, 0] == 0).all() and (sheet[0, -1] == 13).all()
    assert (sheet[-1, 0] == 13).all() and (sheet[-1, -1] == 0).all()
    assert (sheet[4] == 255).all()  # the gap
