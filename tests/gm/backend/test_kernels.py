"""The CPU's forms of norms and activations, and their gradients, against PyTorch."""

from contextlib import nullcontext

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, ops

from gm.backend import operators as kernels
from gm.backend import shared_memory
from gm.backend.runtime import eager


@pytest.fixture(params=[0, 1], ids=["graph", "pynative"])
def mode(request):
    ms.set_context(mode=request.param)  # the session's conftest restores it
    return request.param


def compare(ours, theirs, arrays, weights):
    def weighted(*tensors):
        return (ours(*tensors) * Tensor(weights)).sum()

    value = ours(*map(Tensor, arrays)).asnumpy()
    gradients = ms.value_and_grad(weighted, tuple(range(len(arrays))))(*map(Tensor, arrays))[1]
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = theirs(*leaves)
    (expected * torch.from_numpy(weights)).sum().backward()
    np.testing.assert_allclose(value, expected.detach().numpy(), atol=2e-5)
    for gradient, leaf in zip(gradients, leaves):
        scale = np.abs(leaf.grad.numpy()).max()
        assert np.abs(gradient.asnumpy() - leaf.grad.numpy()).max() <= 1e-5 * scale


def arrays(shape, channels):
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal(shape) + 2).astype(np.float32)
    return [x, *rng.standard_normal((2, channels)).astype(np.float32)], rng.standard_normal(shape).astype(np.float32)


def ours_group_norm(x, weight, bias):
    return kernels.group_norm(x, 32, weight, bias, 1e-5)


def ours_layer_norm(x, weight, bias):
    return kernels.layer_norm(x, weight, bias, 1e-5)


def test_group_norm(mode):
    inputs, weights = arrays((2, 64, 3, 5), 64)
    compare(ours_group_norm, lambda x, w, b: torch.nn.functional.group_norm(x, 32, w, b, 1e-5), inputs, weights)


def test_layer_norm(mode):
    inputs, weights = arrays((2, 7, 48), 48)
    compare(ours_layer_norm, lambda x, w, b: torch.nn.functional.layer_norm(x, (48,), w, b, 1e-5), inputs, weights)


def test_gelu(mode):
    rng = np.random.default_rng(0)
    compare(kernels.GELU(), torch.nn.functional.gelu, [rng.standard_normal((5, 9)).astype(np.float32) * 3],
            rng.standard_normal((5, 9)).astype(np.float32))  # fmt: skip


def test_gelu_is_exact_to_fp32_everywhere():
    x = np.concatenate([np.linspace(-20, 20, 400_001), [-1e20, -1e4, -100, 0, 100, 1e4, 1e20]])
    x = x.astype(np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    error = np.abs(kernels.GELU()(Tensor(x)).asnumpy() - expected) / np.maximum(1, np.abs(x))
    assert error.max() < 1e-6


def test_a_large_mean_costs_a_group_norm_little():
    """E[x²] - E[x]² cancels: at a mean of 30 deviations three of seven digits are left."""
    (x, weight, bias), _ = arrays((1, 32, 64, 64), 32)
    x = x + 90
    ours = ours_group_norm(*map(Tensor, (x, weight, bias))).asnumpy()
    theirs = torch.nn.functional.group_norm(*map(torch.from_numpy, (x,)), 32, *map(torch.from_numpy, (weight, bias)))
    assert np.abs(ours - theirs.numpy()).max() <= 2e-3


VIEWS = {
    "whole": lambda x: x,
    "swapped": lambda x: x.swapaxes(1, 3),
    "part": lambda x: x[1:, :, 2:],
    "reversed order": lambda x: x.transpose(3, 2, 1, 0),
}


@pytest.mark.parametrize("shared", [False, True], ids=["views", "shared"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_layout_changes(shared, view):
    array = np.random.default_rng(0).standard_normal((3, 4, 5, 6), np.float32)
    x, array = view(Tensor(array)), view(array)
    flat, half = (-1, array.shape[-1]), array.shape[2] // 2
    with eager() if shared else nullcontext():
        np.testing.assert_array_equal(ops.relu(kernels.reshape(x, flat)).asnumpy(), array.reshape(flat).clip(0))
        np.testing.assert_array_equal(ops.neg(kernels.rows_between(x, 1, half)).asnumpy(), -array[:, :, 1:half])
        for axes in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)):
            swapped = kernels.swap_axes(x, *axes)
            np.testing.assert_array_equal(ops.neg(swapped).asnumpy(), -array.swapaxes(*axes))
        permuted = kernels.rows_permuted(x, (2, 0, 1, 3))
        np.testing.assert_array_equal(ops.neg(permuted).asnumpy(), -array.transpose(2, 0, 1, 3))


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_work_by_blocks(monkeypatch, rows):
    array = np.random.default_rng(0).standard_normal((7, 2, 5), np.float32)
    monkeypatch.setattr(shared_memory, "BLOCK_BYTES", rows * array[0].nbytes)
    sizes = []

    def function(x):
        sizes.append(len(x))
        return ops.cat((x, -x), axis=1)

    with eager():
        result = kernels.in_blocks(function, Tensor(array), array[0].nbytes).asnumpy()
    np.testing.assert_array_equal(result, np.concatenate([array, -array], axis=1))
    assert sizes == [rows] * (7 // rows) + [7 % rows] * (7 % rows > 0)


def test_shared_memory_outlives_the_tensor_that_it_was():
    results = []
    with eager():
        for value in range(50):
            results.append(kernels.reshape(ops.full((256, 1024), value, dtype=ms.float32) + 0, (1024, 256)))
            ops.full((256, 1024), -1.0, dtype=ms.float32)
    assert [result.asnumpy().mean() for result in results] == list(range(50))
