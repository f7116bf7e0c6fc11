"""Convolutions by minimal filtering: against PyTorch in double precision, in blocks of any size, where they pay."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.backend import winograd
from gm.backend.cook_toom import POINTS, cook_toom
from gm.backend.kernels.winograd import PLACES
from gm.backend.operators import inference
from gm.backend.winograd import conv2d, conv_over_time, pays, pays_over_time
from gm.networks.layers import Conv2d, TemporalConv, UpsamplingConv

ERROR = 3e-6  # root mean square, relative to the result's; measured 1.4e-6
ERROR_OVER_TIME = 2e-6
COLUMN = 4 * PLACES  # bytes of one channel of a tile


def expected_of(x, weight, bias=None, scale=1, padding=1):
    x, weight = (torch.from_numpy(array).double() for array in (x, weight))
    bias = None if bias is None else torch.from_numpy(bias).double()
    if scale == 2:
        x = torch.nn.functional.interpolate(x, scale_factor=2)
    return torch.nn.functional.conv2d(x, weight, bias, padding=padding).numpy()


def error(result, expected):
    return np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean())


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


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
    ("shape", "outputs", "budget"),
    [
        ((2, 96, 24, 24), 112, 1 << 26),  # whole
        ((3, 112, 18, 23), 96, 1 << 26),  # tiles over the edges
        ((3, 96, 20, 20), 96, 96 * COLUMN * 50),  # some rows of tiles, two halves of the channels
        ((2, 96, 21, 24), 100, 96 * COLUMN * 33),  # a remainder of channels
    ],
)
def test_a_convolution_in_tiles(monkeypatch, scale, shape, outputs, budget):
    monkeypatch.setattr(winograd, "TILES_BYTES", budget)
    x, weight = numbers(*shape), numbers(outputs, shape[1], 3, 3, seed=1)
    result = conv2d(Tensor(x), Tensor(weight), scale).asnumpy()
    expected = expected_of(x, weight, scale=scale)
    assert result.shape == expected.shape
    assert error(result, expected) < ERROR


def test_the_error_is_small_over_many_channels():
    x, weight = numbers(2, 512, 24, 24), numbers(512, 512, 3, 3, seed=1)
    assert error(conv2d(Tensor(x), Tensor(weight)).asnumpy(), expected_of(x, weight)) < ERROR


@pytest.mark.parametrize("make", [lambda: Conv2d(96, 104, 3, padding=1), lambda: UpsamplingConv(96, 104)])
def test_layers_use_it_where_it_pays(make):
    layer, x = make(), numbers(2, 96, 24, 24)
    direct = layer(Tensor(x)).asnumpy()
    with inference():
        result = layer(Tensor(x)).asnumpy()
    scale = result.shape[2] // 24
    expected = expected_of(x, layer.weight.asnumpy(), layer.bias.asnumpy(), scale)
    assert error(result, expected) < ERROR and error(direct, expected) < ERROR
    assert not np.array_equal(result, direct)


def test_few_channels_and_few_tiles_do_not_pay():
    assert pays((1, 128, 32, 32), (128, 128, 3, 3))
    assert not pays((1, 128, 32, 32), (3, 128, 3, 3))  # the last convolution of the decoder
    assert not pays((14, 8, 32, 32), (320, 8, 3, 3))  # the first of the UNet
    assert not pays((20, 1280, 4, 4), (1280, 1280, 3, 3))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 14, 25])
@pytest.mark.parametrize("block", [1 << 25, 4 * 6 * 7 * 50])
def test_any_number_of_frames(monkeypatch, frames, block):
    monkeypatch.setattr(winograd, "FRAMES_BYTES", block)
    x, weight = numbers(2, 7, frames, 61), numbers(5, 7, 3, 1)
    result = conv_over_time(Tensor(x), Tensor(weight)).asnumpy()
    expected = expected_of(x, weight, padding=(1, 0))
    assert result.shape == expected.shape
    assert error(result, expected) < ERROR_OVER_TIME


def test_a_temporal_layer_uses_it_where_it_pays():
    layer, x = TemporalConv(128, 160), numbers(1, 128, 14, 90)
    assert pays_over_time(x.shape, layer.weight.shape)
    direct = layer(Tensor(x)).asnumpy()
    with inference():
        result = layer(Tensor(x)).asnumpy()
    expected = expected_of(x, layer.weight.asnumpy()[..., 0], layer.bias.asnumpy(), padding=(1, 0))
    assert error(result, expected) < ERROR_OVER_TIME and error(direct, expected) < ERROR_OVER_TIME
    assert not np.array_equal(result, direct)


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((1, 64, 14, 900), 128), ((1, 128, 14, 900), 3), ((1, 128, 2, 900), 128), ((2, 1280, 14, 4), 1280)],
    ids=["few in", "few out", "tiles of padding", "too small"],
)
def test_where_it_does_not_pay_over_time(shape, outputs):
    assert not pays_over_time(shape, (outputs, shape[1], 3, 1, 1))
