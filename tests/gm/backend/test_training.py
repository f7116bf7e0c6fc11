"""Kernels in compiled networks with gradients, and updates in parameters' own memory.

Values and gradients of every operator are in test_operators.py, the updates themselves with their users:
tests/gm/training/test_optim.py and test_ema.py.
"""

import copy

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from gm.backend import operators
from gm.backend.kernels.updates import BLOCK
from gm.backend.operators import Operators, training
from gm.backend.training import LARGE, TrainingOperators, tiles_pay
from gm.networks.layers import Conv2d, TemporalConv

ERROR = 3e-6  # root mean square, relative to the result's


@pytest.fixture(scope="module")
def door():
    return TrainingOperators(compiled=False)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def error(result, expected):
    return np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean())


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: Conv2d(64, 96, 3, padding=1), (16, 64, 8, 8)), (lambda: TemporalConv(64, 64), (1, 64, 8, 9))],
    ids=["2-D", "time"],
)
def test_layers_use_them_inside_only(make, shape):
    ms.set_context(mode=ms.GRAPH_MODE)  # the session's conftest restores it
    layer = make()
    x, twin = Tensor(numbers(*shape)), copy.deepcopy(layer)
    direct = layer(x).asnumpy()
    with training():
        assert operators.current.filter_pays(x, layer.weight)
        by_tiles = twin(x).asnumpy()
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
    x, weight = Tensor(numbers(*shape)), Tensor(numbers(outputs, shape[1], 3, taps))
    taken = TrainingOperators().filter_pays(x, weight)
    assert not (taken and (taps == 1 or (shape[3] % 4 == 0 and tiles_pay(x.shape, weight.shape))))


def test_half_precision_is_left_alone():
    x = Tensor(numbers(8, 64, 8, 8)).astype(ms.float16)
    assert not TrainingOperators().filter_pays(x, Tensor(numbers(64, 64, 3, 3)))


def test_not_operator_by_operator(door):
    assert not door.filter_pays(Tensor(numbers(8, 64, 8, 8)), Tensor(numbers(64, 64, 3, 3)))


@pytest.mark.parametrize("rows", [10, LARGE // 8], ids=["small", "large"])
def test_a_biass_gradient(rows):
    class Gradients(nn.Cell):
        def __init__(self):
            super().__init__()
            self.gradients = ms.grad(AddBias(), (0, 1))

        def construct(self, *inputs):
            return self.gradients(*inputs)

    class AddBias(nn.Cell):
        def construct(self, y, bias, weights):
            return (operators.current.add_bias(y, bias) * weights).sum()

    ms.set_context(mode=ms.GRAPH_MODE)
    y, bias, weights = numbers(rows, 8), numbers(8), numbers(rows, 8, seed=1)
    with training():
        of_y, of_bias = Gradients()(*map(Tensor, (y, bias, weights)))
    np.testing.assert_array_equal(of_y.asnumpy(), weights)
    np.testing.assert_allclose(of_bias.asnumpy(), weights.astype(float).sum(0), rtol=1e-5, atol=1e-3)


def test_updates_are_mindspores(door):
    """Of the door that calls tensor by tensor, and of the one whose operators stand in a graph."""
    start = [numbers(7, 5, seed=seed) for seed in range(3)]
    gradient, results = Tensor(numbers(7, 5, seed=3)), []
    for each in (Operators(), door):
        tensors = [Parameter(Tensor(np.abs(array)), str(index)) for index, array in enumerate(start)]
        each.adamw(*tensors, gradient, 0.5, 0.01, 0.9, 0.99, 1e-8, 0.1)
        each.move_average(tensors[0], tensors[1], 0.25)
        results.append([tensor.asnumpy() for tensor in tensors] + [np.float32(each.square_sum(gradient))])
    for own, ours in zip(*results):
        np.testing.assert_allclose(ours, own, rtol=2e-6, atol=1e-6)


class Holder(nn.Cell):
    def __init__(self, values):
        super().__init__()
        self.weight = Parameter(Tensor(values), "weight")

    def construct(self, x):
        return x + self.weight


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used before"])
@pytest.mark.parametrize("replaced", [False, True], ids=["first values", "values set"])
def test_a_network_sees_the_change(door, mode, used, replaced):
    ms.set_context(mode=mode)
    net, zeros = Holder(np.zeros(5, np.float32)), Tensor(np.zeros(5, np.float32))
    if used:
        net(zeros).asnumpy()
    if replaced:
        net.weight.set_data(Tensor(np.zeros(5, np.float32)))
    target = Parameter(Tensor(np.full(5, 4, np.float32)), "target")
    for expected in (2.0, 3.0):
        door.move_average(net.weight, target, 0.5)
        np.testing.assert_array_equal(net(zeros).asnumpy(), expected)
        np.testing.assert_array_equal(net.weight.asnumpy(), expected)


def test_it_is_possible_here(door):
    assert door.updates_from_host


@pytest.mark.parametrize("size", [1, 15, BLOCK - 1, BLOCK, 3 * BLOCK + 17, 40 * BLOCK])
def test_the_sum_of_squares(door, size):
    values = np.random.default_rng(size).standard_normal(size, np.float32) + 1
    result = door.square_sum(Tensor(values.reshape(1, size)))
    assert result == pytest.approx(np.square(values.astype(float)).sum(), rel=1e-6)


def test_the_sum_of_squares_is_not_finite_if_a_number_is_not(door):
    for bad in (np.nan, np.inf):
        assert not np.isfinite(door.square_sum(Tensor(np.array([1, bad, 2], np.float32))))
