"""Convolutions by tiles: against PyTorch in double precision, in blocks of any size, and only where they pay."""

from fractions import Fraction

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.backend import kernel_fusion, winograd
from gm.backend.cook_toom import PLACES, POINTS, cook_toom
from gm.backend.kernel_fusion import fused_kernels_inside
from gm.backend.runtime import eager
from gm.backend.winograd import TILE, block_size, worthwhile
from gm.networks.layers import Conv2d, UpsamplingConv

ERROR = 3e-6  # root mean square, relative to the result's; measured 1.4e-6
COLUMN = 4 * PLACES  # bytes of one channel of a tile


@pytest.fixture(params=["pynative", "graph"])
def inside(request):
    """The context in which a convolution may be computed by tiles."""
    if request.param == "pynative":
        return eager
    ms.set_context(mode=ms.GRAPH_MODE)  # the session's conftest restores it
    if kernel_fusion.obstacle():
        pytest.skip(kernel_fusion.obstacle())
    return fused_kernels_inside


def expected_of(conv, x, scale=1):
    x, weight, bias = (torch.from_numpy(array).double() for array in (x, conv.weight.asnumpy(), conv.bias.asnumpy()))
    if scale == 2:
        x = torch.nn.functional.interpolate(x, scale_factor=2)
    return torch.nn.functional.conv2d(x, weight, bias, padding=1).numpy()


def error(result, expected):
    return np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean())


def picture(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("points", [POINTS, (0, 1, -1, 2, -2), (0, 2, 3)])
def test_the_minimal_filter_is_exact(points):
    a, g, b = cook_toom([Fraction(point) for point in points])
    rng = np.random.default_rng(0)
    signal, taps = ([Fraction(int(value)) for value in rng.integers(-9, 10, count)] for count in (len(b), 3))

    def times(matrix, vector):
        return [sum(x * y for x, y in zip(row, vector)) for row in matrix]

    products = [x * y for x, y in zip(times(g, taps), times(b, signal))]
    assert times(a, products) == [sum(signal[i + j] * taps[j] for j in range(3)) for i in range(len(points) - 1)]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(
    ("shape", "outputs", "block", "weights"),
    [
        ((2, 96, 24, 24), 112, 1 << 27, 1 << 28),  # whole
        ((3, 112, 18, 23), 96, 1 << 27, 1 << 28),  # tiles over the edges
        ((3, 96, 20, 20), 96, 96 * COLUMN * 60, 96 * COLUMN * 50),  # frame by frame, two halves of the channels
        ((2, 96, 21, 24), 100, 96 * COLUMN * 20, 96 * COLUMN * 33),  # some rows at a time, a remainder of channels
    ],
)
def test_a_convolution_by_tiles(inside, monkeypatch, scale, shape, outputs, block, weights):
    monkeypatch.setattr(winograd, "BLOCK_BYTES", block)
    monkeypatch.setattr(winograd, "WEIGHTS_BYTES", weights)
    make = {1: lambda *channels: Conv2d(*channels, 3, padding=1), 2: UpsamplingConv}[scale]
    conv, x = make(shape[1], outputs), picture(*shape)
    n, c, h, w = shape
    with inside():
        assert conv.by_tiles((n, c, h * scale, w * scale), ms.float32)
        result = conv(Tensor(x)).asnumpy()
    expected = expected_of(conv, x, scale)
    assert result.shape == expected.shape
    assert error(result, expected) < ERROR


def test_the_error_is_small_over_many_channels(inside):
    conv, x = Conv2d(512, 512, 3, padding=1), picture(2, 512, 24, 24)
    with inside():
        result = conv(Tensor(x)).asnumpy()
    assert error(result, expected_of(conv, x)) < ERROR


def test_where_gradients_are_computed_it_is_a_plain_convolution():
    conv, x = Conv2d(96, 96, 3, padding=1), picture(2, 96, 24, 24)
    assert not conv.by_tiles(x.shape, ms.float32)
    ms.set_context(mode=ms.GRAPH_MODE)
    with fused_kernels_inside(training=True):
        assert not conv.by_tiles(x.shape, ms.float32)


def test_half_precision_is_a_plain_convolution():
    conv = Conv2d(96, 96, 3, padding=1)
    conv.compute_dtype = ms.float16
    x = picture(2, 96, 24, 24)
    with eager():
        assert not conv.by_tiles(x.shape, ms.float16)
        result = conv(Tensor(x)).asnumpy()
    assert result.dtype == np.float16
    assert error(result, expected_of(conv, x)) < 2e-3


def test_few_channels_and_few_tiles_do_not_pay():
    assert worthwhile((1, 128, 32, 32), (128, 128, 3, 3))
    assert not worthwhile((1, 128, 32, 32), (3, 128, 3, 3))  # the last convolution of the decoder
    assert not worthwhile((14, 8, 32, 32), (320, 8, 3, 3))  # the first of the UNet
    assert not worthwhile((28, 1280, 4, 4), (1280, 1280, 3, 3))


@pytest.mark.parametrize("shape", [(28, 320, 32, 32), (14, 256, 576, 1024), (1, 1280, 9, 16), (28, 2560, 18, 32)])
@pytest.mark.parametrize("outputs", [128, 1280])
def test_blocks_fit_their_budgets(shape, outputs):
    n, c, h, w = shape
    frames, rows, channels = block_size(shape, (outputs, c, 3, 3))
    assert 1 <= frames <= n and 1 <= rows <= h and 1 <= channels <= outputs
    assert rows == h or rows % TILE == 0 and frames == 1
    column = c * COLUMN
    assert frames * column * -(-rows // TILE) * -(-w // TILE) <= winograd.BLOCK_BYTES + column * -(-w // TILE)
    assert channels * column <= winograd.WEIGHTS_BYTES
