"""Rendered clips: the right pixels, at the right speed, without borders or aliasing."""

import cv2
import numpy as np
import pytest

from data.video_metrics import flow_magnitude, mean_flow
from svd_tiny.camera_moves import KINDS, CameraMove, draw_move, frame_to_scene, reach
from svd_tiny.clip_renderer import ClipSize, Shot, Window, fit_shot, render
from svd_tiny.depth_map import estimate_depth, find_horizon, flat_depth, soften

SIZE = ClipSize(height=96, width=160, num_frames=8)


@pytest.fixture(scope="module")
def photo():
    """(300, 520, 3) uint8: texture everywhere, darker above the middle."""
    noise = np.random.default_rng(0).normal(0, 1, (300, 520, 3)).astype(np.float32)
    texture = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (2, 4, 8))
    texture = texture * (35 / texture.std()) + 130
    texture[:150] -= 40
    return np.clip(texture, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def coordinates():
    """A photograph whose red and green are its own x and y, 0..1 over 0..255."""
    y, x = np.mgrid[0:300, 0:520].astype(np.float32)
    photo = np.stack([(x + 0.5) / 520 * 255, (y + 0.5) / 300 * 255, np.full_like(x, 128)], axis=-1)
    return photo.round().astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_shots_stay_inside_the_photograph(photo, kind, seed):
    rng = np.random.default_rng(seed)
    shot = fit_shot(photo.shape, estimate_depth(photo, 0.0), draw_move(kind, rng), 0.015, SIZE, rng)
    reached = reach(shot.move, shot.depth, SIZE.num_frames, SIZE.aspect)
    assert shot.window.contains(reached, photo.shape)


@pytest.mark.parametrize("kind", ["zoom_in", "pan", "rotate", "truck", "dolly"])
def test_every_pixel_shows_its_scene_point(coordinates, kind):
    rng = np.random.default_rng(4)
    shot = fit_shot(coordinates.shape, estimate_depth(coordinates, 0.0), draw_move(kind, rng), 0.01, SIZE, rng)
    frames = render(coordinates, shot, SIZE)
    y, x = np.mgrid[8:88:8, 8:152:8]
    points = (x + 0.5) / SIZE.width - 0.5 + 1j * SIZE.aspect * ((y + 0.5) / SIZE.height - 0.5)
    for index in (0, 7):
        scene = frame_to_scene(shot.move, shot.depth, points, index)
        place = shot.window.centre + shot.window.scale * scene
        np.testing.assert_allclose(frames[index][y, x, 0], place.real / 520 * 255, atol=1.5)
        np.testing.assert_allclose(frames[index][y, x, 1], place.imag / 300 * 255, atol=1.5)


@pytest.mark.parametrize("kind", ["zoom_in", "zoom_out", "pan"])
def test_measured_flow_is_the_speed(photo, kind):
    rng = np.random.default_rng(2)
    speed = 0.012  # widths per frame
    shot = fit_shot(photo.shape, estimate_depth(photo, 0.0), draw_move(kind, rng), speed, SIZE, rng)
    frames = render(photo, shot, SIZE)
    assert mean_flow(frames, fps=7) == pytest.approx(speed * 7 / SIZE.aspect, rel=0.2)
    per_step = flow_magnitude(frames).mean(axis=(1, 2))
    assert per_step.std() < 0.1 * per_step.mean()


def test_static_clip_repeats_its_frame(photo):
    rng = np.random.default_rng(0)
    shot = fit_shot(photo.shape, estimate_depth(photo, 0.0), draw_move("static", rng), 0.0, SIZE, rng)
    frames = render(photo, shot, SIZE)
    assert (frames == frames[0]).all()
    assert frames.std() > 10


def test_all_frames_are_equally_sharp(photo):
    shot = Shot(CameraMove(pan=0.013 + 0.004j), flat_depth, Window(200 + 150j, 240.0))
    frames = render(photo, shot, SIZE)
    detail = [cv2.Laplacian(frame[:, 30:], cv2.CV_64F).std() for frame in frames]
    assert max(detail) < 1.1 * min(detail)


def test_fine_pattern_becomes_grey_not_moire():
    """A checkerboard finer than the clip's pixels has no business in the clip."""
    board = np.indices((600, 1000)).sum(axis=0) % 2 * 255
    board = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    shot = Shot(CameraMove(pan=0.003 + 0.001j), flat_depth, Window(500 + 300j, 900.0))
    frames = render(board, shot, SIZE)
    assert abs(frames.mean() - 127.5) < 2
    assert frames.std() < 3


def test_beyond_the_border_is_the_mirror_image(photo):
    shot = Shot(CameraMove(), flat_depth, Window(0 + 150j, 320.0))  # half of the frame lies left of the photograph
    frame = render(photo, shot, ClipSize(96, 160, 1))[0].astype(int)
    assert np.abs(frame[:, 20:80] - frame[:, 139:79:-1]).mean() < 8
    assert frame[:, :80].std() > 10


def test_depth_grows_downwards_from_the_horizon(photo):
    depth = estimate_depth(photo, 0.0)
    assert find_horizon(photo) == pytest.approx(0.5, abs=0.03)
    assert depth.min() >= 0 and depth.max() <= 1
    rows = depth.mean(axis=1)
    assert rows[:40].max() < 0.2 < rows[90:].min()
    assert rows[-1] > rows[90]


def test_portrait_is_near_in_the_middle(photo):
    depth = estimate_depth(photo, 1.0)
    assert depth[60:90, 100:150].mean() > depth[:10, :20].mean() + 0.5


def test_softened_depth_keeps_below_the_gradient():
    step = np.zeros((60, 100), np.float32)
    step[30:] = 1
    soft = soften(step, step=0.01, max_gradient=3.0)
    assert np.abs(np.diff(soft, axis=0)).max() / 0.01 <= 3.0
    assert soft[0].max() < 0.35 and soft[-1].min() > 0.65
    np.testing.assert_array_equal(soften(step, step=0.01, max_gradient=1000.0), step)
