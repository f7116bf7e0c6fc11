import numpy as np
import pytest

from gm.networks.tiling import in_tiles


def doubled(x):
    """Each pixel twice in both directions: a function that does not mix neighbours."""
    return np.repeat(np.repeat(x, 2, axis=-2), 2, axis=-1)


def picture(height, width, channels=3):
    return np.random.default_rng(0).standard_normal((2, channels, height, width)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (100, 24), (33, 65)])
def test_what_does_not_mix_pixels_is_as_of_the_whole_picture(height, width):
    x = picture(height, width)
    np.testing.assert_allclose(in_tiles(doubled, x, 16, (1, 2)), doubled(x), rtol=1e-6, atol=1e-6)


def test_units_before_and_after():
    x = picture(8 * 24, 8 * 40)

    def averages(pixels):
        n, c, h, w = pixels.shape
        return pixels.reshape(n, c, h // 8, 8, w // 8, 8).mean((3, 5))

    np.testing.assert_allclose(in_tiles(averages, x, 16, (8, 1)), averages(x), rtol=1e-5, atol=1e-6)


def test_no_tile_is_larger_than_asked_for_and_all_are_of_one_size():
    shapes = []

    def seen(x):
        shapes.append(x.shape[2:])
        return x

    in_tiles(seen, picture(40, 12), 16, (1, 1))
    assert set(shapes) == {(16, 12)}
    assert len(shapes) == 3  # 16 rows each, of which 4 are a neighbour's too: 3 cover 40


@pytest.mark.parametrize("tile", [0, 24, 100])
def test_a_picture_of_one_tile_is_left_whole(tile):
    calls = []

    def function(x):
        calls.append(x)
        return x

    x = picture(24, 20)
    assert in_tiles(function, x, tile, (1, 1)) is x
    assert len(calls) == 1


def test_tiles_fade_into_each_other():
    numbers = iter(range(100))

    def numbered(x):
        return np.full(x.shape, next(numbers), np.float32)

    y = in_tiles(numbered, picture(16, 64), 16, (1, 1))[0, 0, 0]
    assert y[0] == 0
    assert y[-1] == next(numbers) - 1
    steps = np.diff(y)
    assert (steps >= 0).all()
    assert steps.max() < 0.34  # a fourth of 16 pixels is the fading's length: no seam
