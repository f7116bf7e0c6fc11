"""Convolutions over time by tiles: against PyTorch in double precision, and only where they pay."""

import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.backend import temporal_filter
from gm.backend.runtime import eager
from gm.backend.temporal_filter import convolve, worthwhile
from gm.networks.layers import TemporalConv

ERROR = 2e-6  # root mean square, relative to the result's


def numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def expected_of(x, weight, bias=None):
    arrays = [torch.from_numpy(array).double() for array in (x, weight.reshape(weight.shape[:3] + (1,)))]
    bias = None if bias is None else torch.from_numpy(bias).double()
    return torch.nn.functional.conv2d(*arrays, bias, padding=(1, 0)).numpy()


def error(result, expected):
    return np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean())


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 14, 25])
@pytest.mark.parametrize("block", [1 << 25, 4 * 6 * 7 * 50])
def test_any_number_of_frames(monkeypatch, frames, block):
    monkeypatch.setattr(temporal_filter, "BLOCK_BYTES", block)
    x, weight = numbers(2, 7, frames, 61), numbers(5, 7, 3, 1)
    with eager():
        result = convolve(Tensor(x), Tensor(weight)).asnumpy()
    expected = expected_of(x, weight)
    assert result.shape == expected.shape
    assert error(result, expected) < ERROR


def test_the_layer_uses_it_where_it_pays():
    layer, x = TemporalConv(128, 160), numbers(1, 128, 14, 90)
    assert worthwhile(x.shape, layer.weight.shape)
    direct = layer(Tensor(x)).asnumpy()
    with eager():
        result = layer(Tensor(x)).asnumpy()
    expected = expected_of(x, layer.weight.asnumpy(), layer.bias.asnumpy())
    assert error(result, expected) < ERROR and error(direct, expected) < ERROR
    assert not np.array_equal(result, direct)


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((1, 64, 14, 900), 128), ((1, 128, 14, 900), 3), ((1, 128, 2, 900), 128), ((2, 1280, 14, 4), 1280)],
    ids=["few in", "few out", "tiles of padding", "too small"],
)
def test_where_it_does_not_pay(shape, outputs):
    assert not worthwhile(shape, (outputs, shape[1], 3, 1, 1))
