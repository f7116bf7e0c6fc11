"""Loops as operators of compiled networks: values and gradients against PyTorch in double precision, and adjoints."""

import copy

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops

from gm.backend import graph_filters, graph_loops
from gm.backend import operators as kernels
from gm.backend.graph_filters import FilterByTiles, FilterOverTime
from gm.backend.graph_loops import loops_in_graphs, take_filter
from gm.networks.layers import Conv2d, Linear, TemporalConv
from gm.networks.lora import LoRALinear

ERROR = 3e-6  # root mean square, relative to the result's


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)  # the session's conftest restores it


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def error(result, expected):
    return np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean())


class Weighted(nn.Cell):
    """The sum of an operator's result times given numbers: their products are its gradients."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def construct(self, *inputs):
        return (self.operator(*inputs[:-1]) * inputs[-1]).sum()


class Gradients(nn.Cell):
    def __init__(self, operator, count):
        super().__init__()
        self.gradients = ms.grad(Weighted(operator), tuple(range(count)))

    def construct(self, *inputs):
        return self.gradients(*inputs)


def value_and_gradients(operator, *arrays):
    """The result, and the gradients for each array of its products with fixed random numbers, which come last."""
    inputs = list(map(Tensor, arrays))
    result = operator(*inputs).asnumpy()
    weights = numbers(*result.shape, seed=1)
    gradients = Gradients(operator, len(arrays))(*inputs, Tensor(weights))
    return [result, *(gradient.asnumpy() for gradient in gradients)], weights


def pytorchs(arrays, weights, padding):
    x, weight = (torch.from_numpy(array).double().requires_grad_() for array in arrays)
    result = torch.nn.functional.conv2d(x, weight, padding=padding)
    result.backward(torch.from_numpy(weights).double())
    return [value.detach().numpy() for value in (result, x.grad, weight.grad)]


@pytest.mark.parametrize("shape", [(1, 5, 4, 4), (3, 5, 4, 12), (2, 50, 16, 8)])
@pytest.mark.parametrize("outputs", [1, 7])
def test_convolutions_by_tiles(shape, outputs):
    arrays = numbers(*shape), numbers(outputs, shape[1], 3, 3)
    results, weights = value_and_gradients(FilterByTiles(), *arrays)
    for result, expected in zip(results, pytorchs(arrays, weights, 1)):
        assert error(result, expected) < ERROR


@pytest.mark.parametrize("shape", [(1, 5, 4, 3), (2, 5, 8, 1), (2, 50, 16, 30)])
@pytest.mark.parametrize("outputs", [1, 7])
def test_convolutions_over_time(shape, outputs):
    arrays = numbers(*shape), numbers(outputs, shape[1], 3, 1)
    results, weights = value_and_gradients(FilterOverTime(), *arrays)
    for result, expected in zip(results, pytorchs(arrays, weights, (1, 0))):
        assert error(result, expected) < ERROR


LOOPS = {
    "tiles": ((3, 5, 8, 12), graph_filters._tiles_of_pixels, "_to_tiles", "_from_tiles"),
    "pixels": ((36, 5, 3, 2, 4), graph_filters._pixels_of_tiles, "_to_pixels", "_from_pixels"),
    "tiles of frames": ((2, 5, 12, 7), graph_filters._tiles_of_frames, "_to_time_tiles", "_from_time_tiles"),
    "frames": ((6, 5, 2, 3, 7), graph_filters._frames_of_tiles, "_to_frames", "_from_frames"),
}


@pytest.mark.parametrize(("shape", "out_shape", "loop", "adjoint"), LOOPS.values(), ids=LOOPS)
def test_each_loop_with_its_adjoint(shape, out_shape, loop, adjoint):
    """⟨L x, y⟩ = ⟨x, L* y⟩."""
    x, y = numbers(*shape), numbers(*out_shape(shape), seed=1)
    image, back = np.empty_like(y), np.empty_like(x)
    getattr(graph_filters, loop)(x, image)
    getattr(graph_filters, adjoint)(y, back)
    assert np.vdot(image.astype(float), y) == pytest.approx(np.vdot(x.astype(float), back), rel=1e-5, abs=1e-3)


@pytest.mark.parametrize(("layer", "shape"), [(Conv2d(64, 96, 3, padding=1), (16, 64, 8, 8)),
                                              (TemporalConv(64, 64), (1, 64, 8, 9))], ids=["2-D", "time"])  # fmt: skip
def test_layers_use_them_inside_only(layer, shape):
    x, twin = Tensor(numbers(*shape)), copy.deepcopy(layer)
    direct = layer(x).asnumpy()
    with loops_in_graphs():
        assert take_filter(x, layer.weight)
        by_tiles = twin(x).asnumpy()
    assert not take_filter(x, layer.weight)
    assert not np.array_equal(by_tiles, direct)
    assert error(by_tiles, direct) < ERROR


@pytest.mark.parametrize(
    ("shape", "outputs", "taps"),
    [
        ((8, 64, 8, 8), 8, 3),
        ((8, 8, 8, 8), 64, 3),
        ((8, 64, 8, 6), 64, 3),
        ((8, 64, 6, 8), 64, 3),
        ((1, 64, 8, 8), 64, 3),
        ((64, 320, 8, 8), 320, 3),
        ((1, 64, 14, 64), 64, 1),
    ],
    ids=["few out", "few in", "part of a tile", "part of a tile down", "few tiles", "large weights", "part of a span"],
)
def test_where_they_do_not_pay(shape, outputs, taps):
    weight = Tensor(numbers(outputs, shape[1], 3, taps))
    with loops_in_graphs():
        assert not take_filter(Tensor(numbers(*shape)), weight)


def test_half_precision_is_left_alone():
    with loops_in_graphs():
        assert not take_filter(Tensor(numbers(8, 64, 8, 8)).astype(ms.float16), Tensor(numbers(64, 64, 3, 3)))


@pytest.mark.parametrize("rows", [10, graph_loops.LARGE // 8], ids=["small", "large"])
def test_a_biass_gradient(rows):
    class AddBias(nn.Cell):
        def construct(self, y, bias):
            return kernels.add_bias(y, bias)

    y, bias = numbers(rows, 8), numbers(8)
    with loops_in_graphs():
        assert graph_loops.take_bias(Tensor(y)) == (rows > 10)
        (result, of_y, of_bias), weights = value_and_gradients(AddBias(), y, bias)
    np.testing.assert_array_equal(result, y + bias)
    np.testing.assert_array_equal(of_y, weights)
    np.testing.assert_allclose(of_bias, weights.astype(float).sum(0), rtol=1e-5, atol=1e-3)


class Halves(nn.Cell):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def construct(self, x):
        return ops.concat(self.layer.halves(x), -1)


class AllGradients(nn.Cell):
    """Those for the input and for each parameter."""

    def __init__(self, net):
        super().__init__()
        self.gradients = ms.grad(Weighted(net), 0, weights=ms.ParameterTuple(net.trainable_params()))

    def construct(self, x, weights):
        return self.gradients(x, weights)


def linear():
    return Linear(5, 8)


def without_bias():
    return Linear(5, 8, bias=False)


def low_rank():
    return LoRALinear(Linear(5, 8), rank=2, alpha=3.0)


@pytest.mark.parametrize("make_layer", [linear, without_bias, low_rank])
def test_both_halves_of_a_linear_layer(make_layer):
    """Of the features, whichever way it is divided: the same values and gradients."""

    def run():
        net = Halves(make_layer())
        for seed, parameter in enumerate(net.get_parameters()):
            parameter.set_data(Tensor(numbers(*parameter.shape, seed=seed)))
        x, weights = Tensor(numbers(3, 4, 5, seed=8)), Tensor(numbers(3, 4, 8, seed=9))
        of_x, of_parameters = AllGradients(net)(x, weights)
        return [tensor.asnumpy() for tensor in (net.layer(x), net(x), of_x, *of_parameters)]

    whole, *outside = run()
    with loops_in_graphs():
        _, *inside = run()
    np.testing.assert_array_equal(outside[0], whole)
    assert len(inside) == len(outside) > 2
    for result, expected in zip(inside, outside):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_not_operator_by_operator():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    with loops_in_graphs():
        assert not graph_loops.active
