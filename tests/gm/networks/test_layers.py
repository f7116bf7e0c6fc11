"""Layers whose behaviour is set from outside: a norm's number of groups, convolutions that start as the identity."""

from functools import partial

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.backend.operators import inference
from gm.errors import UserError
from gm.networks.layers import Conv2d, TemporalConv, set_identity, set_norm_groups
from modules.video_unet import VideoUNet

SMALL = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "num_head_channels": 16, "context_dim": 24}


def test_every_norm_of_a_network_takes_the_number_of_groups():
    net = VideoUNet(**SMALL, num_groups=8)
    norms = [cell for _, cell in net.cells_and_names() if type(cell).__name__ == "GroupNorm"]
    assert len(norms) > 10 and {norm.num_groups for norm in norms} == {8}
    x = np.random.default_rng(0).standard_normal((2, norms[0].weight.shape[0], 6, 6)).astype(np.float32)
    expected = torch.nn.functional.group_norm(torch.from_numpy(x), 8, eps=norms[0].eps).numpy()
    np.testing.assert_allclose(norms[0](Tensor(x)).asnumpy(), expected, atol=2e-6)


def test_groups_that_do_not_divide_a_width_are_refused():
    with pytest.raises(UserError, match="num_groups=7 does not divide the 32 channels"):
        set_norm_groups(VideoUNet(**SMALL), 7)


@pytest.mark.parametrize(
    "make", [partial(Conv2d, 4, 4, 1), partial(Conv2d, 4, 4, 3, padding=1), partial(TemporalConv, 4, 4)]
)
def test_a_convolution_that_starts_as_the_identity(make):
    conv = make()
    set_identity(conv)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32))
    np.testing.assert_array_equal(conv(x).asnumpy(), x.asnumpy())


@pytest.mark.parametrize("mode", ["plain", "eager"])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_convolution_of_few_pixels(height, width, size, stride, mode):
    conv = Conv2d(6, 5, size, stride=stride, padding=size // 2)
    x = np.random.default_rng(0).standard_normal((3, 6, height, width)).astype(np.float32)
    weight, bias = (torch.tensor(parameter.asnumpy(), requires_grad=True) for parameter in (conv.weight, conv.bias))
    expected = torch.nn.functional.conv2d(torch.from_numpy(x), weight, bias, stride, padding=size // 2)
    if mode == "eager":
        with inference():
            np.testing.assert_allclose(conv(Tensor(x)).asnumpy(), expected.detach().numpy(), atol=2e-6)
        return
    expected.square().sum().backward()
    np.testing.assert_allclose(conv(Tensor(x)).asnumpy(), expected.detach().numpy(), atol=2e-6)
    gradient = ms.grad(lambda x: conv(x).square().sum(), None, weights=conv.weight)(Tensor(x)).asnumpy()
    np.testing.assert_allclose(gradient, weight.grad.numpy(), atol=1e-4)
