import numpy as np
import pytest

from data.transforms import channels_first, cover, crop, to_model_range


def ramp(height, width, num_frames=2):
    """uint8 (t, h, w, 3): red grows with the row, green with the column, blue is the frame's number."""
    rows, columns = np.mgrid[0:height, 0:width]
    frame = np.stack([rows * 255 // (height - 1), columns * 255 // (width - 1), np.zeros_like(rows)], -1)
    frames = np.repeat(frame[None], num_frames, 0).astype(np.uint8)
    frames[..., 2] = np.arange(num_frames)[:, None, None]
    return frames


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (97, 161), (1080, 1920), (64, 64), (20, 300)])
@pytest.mark.parametrize("target", [(64, 64), (64, 128), (576, 1024), (128, 72)])
def test_cover_keeps_the_aspect_and_wastes_nothing(size, target):
    resized = cover(np.zeros((1, *size, 3), np.uint8), *target)
    height, width = resized.shape[1:3]
    assert height >= target[0] and width >= target[1]
    assert height == target[0] or width == target[1]
    scale = max(target[0] / size[0], target[1] / size[1])
    assert abs(height - scale * size[0]) <= 0.5 and abs(width - scale * size[1]) <= 0.5


def test_cover_does_not_squash():
    frames = ramp(120, 240)
    window = crop(cover(frames, 60, 60), 60, 60)[0].astype(int)
    # the window is the middle half of the width: green runs over a quarter to three quarters, red over all rows
    assert window[30, 0, 1] == pytest.approx(64, abs=4) and window[30, -1, 1] == pytest.approx(191, abs=4)
    assert window[0, 30, 0] == pytest.approx(0, abs=4) and window[-1, 30, 0] == pytest.approx(255, abs=4)


def test_shrinking_averages():
    board = np.indices((128, 128)).sum(0) % 2 * 255
    frames = np.repeat(board[None, ..., None], 3, -1).astype(np.uint8)
    assert np.abs(cover(frames, 32, 32).astype(int) - 127).max() <= 1


def test_a_fitting_size_is_left_alone():
    frames = ramp(64, 128)
    assert cover(frames, 64, 64) is frames


@pytest.mark.parametrize(("position", "corner"), [((0, 0), (0, 0)), ((1, 1), (36, 96)), ((0.5, 0.5), (18, 48))])
def test_crop_places_one_window_for_all_frames(position, corner):
    frames = ramp(100, 160)
    top, left = corner
    assert np.array_equal(crop(frames, 64, 64, position), frames[:, top : top + 64, left : left + 64])


def test_model_range():
    clips = [np.array([0, 255, 128], np.uint8).reshape(1, 3, 1, 1)] * 2
    out = to_model_range(clips)
    assert out.dtype == np.float32 and out.shape == (2, 1, 3, 1, 1)
    np.testing.assert_allclose(out[1].ravel(), [-1.0, 1.0, 128 / 127.5 - 1], atol=1e-6)
    every = to_model_range([np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)])
    assert every.min() >= -1.0 and every.max() <= 1.0
    assert np.array_equal(np.round((every + 1) * 127.5).ravel(), np.arange(256))


def test_channels_move_to_the_front():
    frames = ramp(8, 10)
    moved = channels_first(frames)
    assert moved.flags.c_contiguous and np.array_equal(moved[1, 2], frames[1, ..., 2])
