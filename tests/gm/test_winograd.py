"""Winograd's convolution against PyTorch's, and which convolutions take it."""

import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm.layers import Conv2d
from gm.winograd import LEAST_CHANNELS, WinogradConv, accelerate


def case(n, channels, out, height, width):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, channels, height, width)).astype(np.float32)
    weight = (rng.standard_normal((out, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
    return x, weight


def exact(x, weight):
    return torch.nn.functional.conv2d(*(torch.from_numpy(array).double() for array in (x, weight)), padding=1).numpy()


@pytest.mark.parametrize(
    ("n", "channels", "out", "height", "width"),
    [(3, 8, 12, 8, 8), (2, 12, 8, 2, 2), (1, 8, 8, 1, 1), (2, 8, 8, 9, 16), (2, 8, 8, 6, 7), (5, 64, 32, 4, 10)],
)
def test_it_is_the_same_convolution(n, channels, out, height, width):
    x, weight = case(n, channels, out, height, width)
    y = WinogradConv(weight)(Tensor(x)).asnumpy()
    assert y.shape == (n, out, height, width)
    np.testing.assert_allclose(y, exact(x, weight), atol=5e-6)


def test_it_is_as_exact_as_the_plain_one():
    x, weight = case(4, 256, 64, 16, 16)
    conv = Conv2d(256, 64, 3, padding=1, bias=False)
    conv.weight.set_data(Tensor(weight))
    expected = exact(x, weight)
    plain, fast = (np.abs(net(Tensor(x)).asnumpy() - expected).max() for net in (conv, WinogradConv(weight)))
    assert fast < 3 * plain


def test_blocks_of_pictures_change_nothing_but_rounding():
    x, weight = case(5, 8, 8, 6, 6)
    one_picture = 16 * 8 * 3 * 3 * 4
    whole, blocks = (WinogradConv(weight, budget)(Tensor(x)).asnumpy() for budget in (1 << 28, 2 * one_picture))
    np.testing.assert_allclose(whole, blocks, atol=2e-6)


class Source:
    """A network's weights as a checkpoint would give them."""

    def __init__(self, net):
        self.weights = {name: parameter.asnumpy() for name, parameter in net.parameters_and_names()}
        self.released = []

    def read(self, name):
        return self.weights[name]

    def release(self, name):
        self.released.append(name)


def test_only_wide_plain_convolutions_are_accelerated():
    wide = LEAST_CHANNELS
    net = nn.CellList(
        [
            Conv2d(wide, wide, 3, padding=1),
            Conv2d(wide, wide // 2, 3, padding=1),
            Conv2d(wide, wide, 3, stride=2, padding=1),
            Conv2d(wide, wide, 3, padding=(0, 1, 0, 1)),
            Conv2d(wide, wide, 1),
        ]
    )
    x = Tensor(np.random.default_rng(0).standard_normal((1, wide, 4, 4)).astype(np.float32))
    before, source = net[0](x).asnumpy(), Source(net)
    accelerate(net, source)
    assert [conv.fast is not None for conv in net] == [True, False, False, False, False]
    assert source.released == ["0.weight"]
    after = net[0](x).asnumpy()
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, before, atol=5e-6)
