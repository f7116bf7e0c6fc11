"""Camera moves: their speed is the one asked for, the same all along, and positions invert exactly."""

import numpy as np
import pytest

from svd_tiny.camera_moves import (
    KINDS,
    CameraMove,
    draw_move,
    frame_to_scene,
    mean_speed,
    reach,
    scene_to_frame,
    with_speed,
)
from svd_tiny.depth_map import flat_depth

ASPECT = 0.5625
FRAMES = 14
MOVING = [kind for kind in KINDS if kind != "static"]


def slope(points):
    """A depth that grows smoothly from the upper to the lower edge."""
    return np.clip(0.5 + points.imag / ASPECT, 0, 1)


def grid():
    y, x = np.mgrid[-0.5:0.5:9j, -0.5:0.5:9j]
    return x + 1j * ASPECT * y


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("speed", [0.0005, 0.02])
def test_mean_speed_is_the_one_asked_for(kind, speed):
    move = draw_move(kind, np.random.default_rng(5))
    paced = with_speed(move, slope, FRAMES, ASPECT, speed)
    assert mean_speed(paced, slope, FRAMES, ASPECT) == pytest.approx(speed, rel=0.01)


@pytest.mark.parametrize("kind", MOVING)
def test_speed_is_even_over_the_clip(kind):
    move = with_speed(draw_move(kind, np.random.default_rng(3)), slope, FRAMES, ASPECT, 0.01)
    steps = []
    for frame in range(FRAMES - 1):
        scene = frame_to_scene(move, slope, grid(), frame)
        steps.append(np.abs(scene_to_frame(move, slope, scene, frame + 1) - grid()).mean())
    assert np.std(steps) < 0.12 * np.mean(steps)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_invert(kind):
    move = with_speed(draw_move(kind, np.random.default_rng(8)), slope, FRAMES, ASPECT, 0.012)
    scene = frame_to_scene(move, slope, grid(), FRAMES - 1)
    np.testing.assert_allclose(scene_to_frame(move, slope, scene, FRAMES - 1), grid(), atol=2e-3)


def test_speed_zero_stands_still():
    move = with_speed(draw_move("mixed", np.random.default_rng(0)), slope, FRAMES, ASPECT, 0)
    np.testing.assert_array_equal(frame_to_scene(move, slope, grid(), 13), grid())


def test_zoom_is_exponential_and_keeps_its_focus():
    move = CameraMove(rate=0.05 + 0j, focus=0.1 + 0.05j)
    shown = scene_to_frame(move, flat_depth, np.array([move.focus, move.focus + 0.1]), 10)
    assert shown[0] == pytest.approx(move.focus)
    assert shown[1] - shown[0] == pytest.approx(0.1 * np.exp(0.5))


def test_rotation_keeps_distances():
    move = CameraMove(rate=0.03j)
    shown = scene_to_frame(move, flat_depth, grid(), 10)
    np.testing.assert_allclose(np.abs(shown), np.abs(grid()), atol=1e-12)
    assert np.angle(shown[0, 0] / grid()[0, 0]) == pytest.approx(0.3)


def test_truck_moves_what_is_near_and_leaves_the_horizon():
    move = CameraMove(truck=0.01 + 0j)
    top, bottom = scene_to_frame(move, slope, np.array([-0.5j * ASPECT, 0.5j * ASPECT]), 10)
    assert top.real == pytest.approx(0)
    assert bottom.real == pytest.approx(0.1)


def test_combined_pan_and_zoom_have_one_field_of_velocities():
    """p(t + 1) depends on p(t) alone."""
    move = CameraMove(rate=0.02 + 0.01j, pan=0.01 - 0.005j, focus=0.1j)
    first = scene_to_frame(move, flat_depth, grid(), 1)
    np.testing.assert_allclose(scene_to_frame(move, flat_depth, first, 1), scene_to_frame(move, flat_depth, grid(), 2))


def test_reach_of_a_zoom_out_grows_and_of_a_zoom_in_stays():
    outwards = reach(CameraMove(rate=-0.05 + 0j), flat_depth, 11, ASPECT)
    np.testing.assert_allclose(outwards, np.array([-0.5, -0.5 * ASPECT, 0.5, 0.5 * ASPECT]) * np.exp(0.5))
    inwards = reach(CameraMove(rate=0.05 + 0j), flat_depth, 11, ASPECT)
    np.testing.assert_allclose(inwards, [-0.5, -0.5 * ASPECT, 0.5, 0.5 * ASPECT])


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind"):
        draw_move("wobble", np.random.default_rng(0))


def test_a_camera_that_pans_right_shows_the_picture_going_left():
    for seed in range(3):
        move = with_speed(draw_move("pan_right", np.random.default_rng(seed)), slope, FRAMES, ASPECT, 0.01)
        moved = scene_to_frame(move, slope, grid(), 1) - grid()
        np.testing.assert_allclose(moved, -0.01 + 0j, atol=1e-5)
