"""Operators as loops over shared memory: against PyTorch in double precision, over sizes that are no round numbers."""

import os
import signal

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from torch.nn import functional

from gm.backend import operators as kernels
from gm.backend import shared_memory
from gm.backend.kernels import activations, threads
from gm.backend.runtime import eager
from gm.networks.layers import GEGLU, Conv2d, GroupNorm, LayerNorm, Linear, SiLU

LARGE = (3, 61, 5, 47)  # more numbers than one thread takes
SMALL = (2, 6, 1, 3)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def exact(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(array)).double() for array in arrays]


def assert_close(result, expected, tolerance=2e-6):
    result, expected = result.asnumpy(), expected.numpy()
    assert result.dtype == np.float32 and result.shape == expected.shape
    assert np.abs(result - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.fixture(autouse=True)
def inside():
    with eager():
        yield


@pytest.mark.parametrize("shape", [LARGE, SMALL])
def test_activations(shape):
    x = 4 * numbers(*shape)
    before = x.copy()
    assert_close(kernels.silu(Tensor(x)), functional.silu(*exact(x)))
    assert_close(kernels.GELU()(Tensor(x)), functional.gelu(*exact(x)))
    np.testing.assert_array_equal(x, before)


def test_activations_far_out():
    x = np.array([-np.inf, -1e30, -100, -88, -87, -20, -0.0, 0, 20, 87, 88, 100, 1e30, np.inf], np.float32)
    silu, gelu = kernels.silu(Tensor(x)).asnumpy(), kernels.GELU()(Tensor(x)).asnumpy()
    for result in (silu, gelu):
        np.testing.assert_array_equal(result[8:], x[8:])
        assert np.abs(result[1:8]).max() < 1e-7
    assert np.isnan(kernels.silu(Tensor(np.array([np.nan], np.float32))).asnumpy()).all()


def test_the_exponential_function():
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    result = np.array([activations.exp(value) for value in x[::97]], np.float32)
    assert np.abs(result / np.exp(x[::97].astype(np.float64)) - 1).max() < 3e-7


@pytest.mark.parametrize("rows", [1, 700])
def test_gated_feed_forward(rows):
    layer, x = GEGLU(12, 17), numbers(rows, 5, 12)
    hidden, gate = functional.linear(*exact(x, layer.proj.weight.asnumpy(), layer.proj.bias.asnumpy())).chunk(2, -1)
    assert_close(layer(Tensor(x)), hidden * functional.gelu(gate))


@pytest.mark.parametrize("shape", [LARGE, SMALL])
def test_sums_with_a_scaled_summand(shape):
    x, y, scale = numbers(*shape), numbers(*shape, seed=1), np.float32(0.3)
    (dx, dy), before = exact(x, y), x.copy()
    assert_close(kernels.add_scaled(Tensor(x), Tensor(y), Tensor(scale)), dx + float(scale) * dy)
    y = numbers(*shape, seed=1)
    assert_close(kernels.mix(Tensor(x), Tensor(y), Tensor(scale)), float(scale) * dx + (1 - float(scale)) * dy)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(700, 12), (2, 3, 12), (12,)])
def test_linear(shape, bias):
    layer, x = Linear(12, 31, bias=bias), numbers(*shape)
    parameters = [p.asnumpy() for p in (layer.weight, layer.bias) if p is not None]
    assert_close(layer(Tensor(x)), functional.linear(*exact(x, *parameters)))


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("shape", [(2, 64, 3, 5), (1, 32, 9000), (3, 96, 70, 41)])
def test_group_norm(shape, mean):
    layer, x = GroupNorm(shape[1]), 3 * numbers(*shape) + np.float32(mean)
    layer.weight.set_data(Tensor(numbers(shape[1], seed=1)))
    layer.bias.set_data(Tensor(numbers(shape[1], seed=2)))
    expected = functional.group_norm(exact(x)[0], 32, *exact(layer.weight.asnumpy(), layer.bias.asnumpy()), 1e-5)
    assert_close(layer(Tensor(x)), expected, 4e-6)


@pytest.mark.parametrize("shape", [(2, 7, 48), (500, 61), (1, 9001)])
def test_layer_norm(shape):
    layer, x = LayerNorm(shape[-1]), 3 * numbers(*shape) + 2
    layer.weight.set_data(Tensor(numbers(shape[-1], seed=1)))
    expected = functional.layer_norm(*exact(x), shape[-1:], *exact(layer.weight.asnumpy(), layer.bias.asnumpy()), 1e-5)
    assert_close(layer(Tensor(x)), expected, 4e-6)


def test_a_norm_of_equal_numbers_is_its_bias():
    layer = LayerNorm(40)
    layer.bias.set_data(Tensor(numbers(40)))
    np.testing.assert_allclose(layer(Tensor(np.full((2, 40), 7.3, np.float32))).asnumpy()[1], numbers(40), atol=1e-6)


@pytest.mark.parametrize("shape", [(700, 33), LARGE, SMALL, (4, 33, 200)])
def test_add_bias(shape):
    y, bias = numbers(*shape), numbers(shape[1], seed=1)
    expected = exact(y)[0] + exact(bias)[0].reshape((-1,) + (1,) * (len(shape) - 2))
    assert_close(kernels.add_bias(Tensor(y), Tensor(bias)), expected)


@pytest.mark.parametrize(
    "terms",
    [(3, 1, 61, 1, 1), (1, 1, 61, 1, 1), (1, 5, 1, 1, 41), (3, 1, 1, 1, 41), (41,), (3, 5, 61, 7, 41), (1, 1, 1, 1, 1)],
)
def test_add_broadcast(terms):
    x, y = numbers(3, 5, 61, 7, 41), numbers(*terms, seed=1)
    before = x.copy()
    assert_close(kernels.add_broadcast(Tensor(x), Tensor(y)), sum(exact(x, y)))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("shape", [(3, 70, 33), (1, 1, 5), (2, 3, 32, 65)])
def test_the_last_two_axes_are_swapped(shape):
    x = numbers(*shape)
    np.testing.assert_array_equal(shared_memory.swap_last(Tensor(x)).asnumpy(), x.swapaxes(-1, -2))


def test_views_are_read_as_what_they_show():
    x = Tensor(numbers(6, 40, 50))
    view = x.swapaxes(1, 2)[1:, ::2]
    assert_close(kernels.silu(view), functional.silu(*exact(view.asnumpy())))
    assert_close(kernels.add_broadcast(view, view[:, :1, :1]), sum(exact(view.asnumpy(), view.asnumpy()[:, :1, :1])))


def test_half_precision_is_left_to_mindspore():
    for layer, x in ((Linear(12, 31), numbers(5, 12)), (Conv2d(4, 6, 1), numbers(2, 4, 5, 5)), (SiLU(), numbers(9))):
        expected = layer(Tensor(x)).asnumpy()
        layer.compute_dtype = ms.float16
        result = layer(Tensor(x, ms.float16)).asnumpy()
        assert result.dtype == np.float16
        np.testing.assert_allclose(result, expected, atol=2e-2)


def test_gradients_are_mindspores():
    x = Tensor(numbers(4, 8))
    kernels.sharing = False  # as outside eager()
    gradient = ms.grad(lambda x: SiLU()(x).sum())(x).asnumpy()
    (leaf,) = (torch.from_numpy(x.asnumpy()).requires_grad_(),)
    functional.silu(leaf).sum().backward()
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-5)


def test_rows_are_shared_out_whole(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 3)
    for count in (1, 2, 3, 10):
        seen = np.zeros(count, int)

        def function(first, last, seen):
            seen[first:last] += 1

        threads.spread(function, count, threads.SMALLEST, seen)
        assert (seen == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 2)
    threads.spread(lambda first, last: None, 2, threads.SMALLEST)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # kills a process that waits for threads that it has not
        threads.spread(lambda first, last: None, 2, threads.SMALLEST)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_in_a_part_is_raised(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 2)

    def function(first, last):
        if first:
            raise ValueError("second part")

    with pytest.raises(ValueError, match="second part"):
        threads.spread(function, 2, threads.SMALLEST)


def test_a_loop_is_compiled_where_nothing_can_be_kept(monkeypatch):
    def unable(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(threads.numba, "njit", unable)
    assert threads.loop(len) is len


@pytest.mark.parametrize("rows", [3, shared_memory.SOME_ROWS, shared_memory.MANY_ROWS])
@pytest.mark.parametrize("outputs", [5, 40])
def test_products_of_few_rows_and_of_many(rows, outputs):
    x, weight = numbers(2, -(-rows // 2), 7), numbers(outputs, 7, seed=1)
    dx, dweight = exact(x, weight)
    assert_close(kernels.product(Tensor(x), Tensor(weight)), (dx @ dweight.T).flatten(0, 1))


class Counting:
    def __init__(self):
        self.calls = 0

    def sum(self, x, number):
        self.calls += 1
        return x + number


def test_what_is_constant_is_computed_once_for_the_same_inputs():
    counting, x = Counting(), Tensor(numbers(3))
    first = kernels.constant(counting.sum, x, 1)
    assert kernels.constant(counting.sum, x, 1) is first
    kernels.constant(counting.sum, x, 2)
    kernels.constant(counting.sum, Tensor(numbers(3)), 1)
    kernels.constant(Counting().sum, x, 1)
    assert counting.calls == 3
    with eager():
        pass
    kernels.constant(counting.sum, x, 1)
    assert counting.calls == 4  # parameters may have changed
