"""Every operator in every implementation, against PyTorch in double precision and against MindSpore's own."""

import ast
from pathlib import Path
from typing import Callable, NamedTuple, Sequence, Tuple

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops
from torch.nn import functional

from gm.backend import host, operators
from gm.backend.ascend import AscendOperators
from gm.backend.host import CompiledOperators, HostOperators
from gm.backend.operators import GRAPH_MODE, PYNATIVE_MODE, Operators, inference, training, using
from gm.backend.training import TrainingOperators
from tests.gm.backend import mint_on_cpu

PROJECT = Path(__file__).parents[3]
IMPLEMENTATIONS = {  # what networks call, and the mode that it is for
    "own": (Operators, PYNATIVE_MODE),
    "own, compiled": (Operators, GRAPH_MODE),
    "ascend": (AscendOperators, PYNATIVE_MODE),
    "ascend, compiled": (AscendOperators, GRAPH_MODE),
    "compiled": (CompiledOperators, GRAPH_MODE),
    "host": (HostOperators, PYNATIVE_MODE),
    "training": (TrainingOperators, GRAPH_MODE),
    "training, one by one": (lambda: TrainingOperators(compiled=False), PYNATIVE_MODE),
}
TOLERANCE = {ms.float32: 5e-6, ms.float16: 4e-3}  # of the largest number of the result


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Case(NamedTuple):
    """A call of the door: `method(*before, *inputs, *after)`, what PyTorch computes, and which input is given up."""

    method: str
    theirs: Callable
    inputs: Sequence[np.ndarray]
    before: Tuple = ()
    after: Tuple = ()
    given_up: int = -1


def conv2d(shape, outputs, kernel=3, stride=1, padding=None, bias=True, sides=None):
    padding = kernel // 2 if padding is None else padding
    top, bottom, left, right = sides = sides or (padding,) * 4
    direct = ops.Conv2D(outputs, kernel, pad_mode="pad", pad=sides, stride=stride)

    def theirs(x, weight, bias=None):
        return functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, bias, stride)

    inputs = [numbers(*shape), numbers(outputs, shape[1], kernel, kernel, seed=1) / np.float32(kernel)]
    if not bias:
        return Case("conv2d", theirs, inputs, (direct,), (None, stride, sides))
    inputs.append(numbers(outputs, seed=2))
    return Case("conv2d", theirs, inputs, (direct,), (stride, sides))


def doubled(shape, outputs):
    direct = ops.Conv2D(outputs, 3, pad_mode="pad", pad=1)

    def theirs(x, weight, bias):
        return functional.conv2d(functional.interpolate(x, scale_factor=2), weight, bias, padding=1)

    inputs = [numbers(*shape), numbers(outputs, shape[1], 3, 3, seed=1) / np.float32(3), numbers(outputs, seed=2)]
    return Case("conv2d_doubled", theirs, inputs, (direct,))


def over_time(shape, outputs):
    direct = ops.Conv2D(outputs, (3, 1), pad_mode="pad", pad=(1, 1, 0, 0))

    def theirs(x, weight, bias):
        return functional.conv2d(x, weight[..., 0], bias, padding=(1, 0))

    inputs = [numbers(*shape), numbers(outputs, shape[1], 3, 1, 1, seed=1) / np.float32(3), numbers(outputs, seed=2)]
    return Case("conv_over_time", theirs, inputs, (direct,))


def linear(rows, features, outputs, bias=True):
    inputs = [numbers(*rows, features), numbers(outputs, features, seed=1)]
    return Case("linear", functional.linear, inputs + [numbers(outputs, seed=2)] * bias, after=() if bias else (None,))


def geglu(x, weight, bias):
    hidden, gate = functional.linear(x, weight, bias).chunk(2, -1)
    return hidden * functional.gelu(gate)


def add_bias(y, bias):
    return y + bias.reshape((-1,) + (1,) * (y.ndim - 2))


class GroupNormDoor(nn.Cell):
    """The number of groups is between the arguments."""

    def __init__(self, groups, eps):
        super().__init__()
        self.groups, self.eps = groups, eps

    def construct(self, x, weight, bias):
        return operators.current.group_norm(x, self.groups, weight, bias, self.eps)


def group_norm(shape, groups, eps=1e-5, mean=2):
    inputs = [3 * numbers(*shape) + np.float32(mean), numbers(shape[1], seed=1), numbers(shape[1], seed=2)]
    return Case("group_norm", lambda x, w, b: functional.group_norm(x, groups, w, b, eps), inputs, (groups, eps))


def layer_norm(shape):
    inputs = [3 * numbers(*shape) + 2, numbers(shape[-1], seed=1), numbers(shape[-1], seed=2)]
    return Case("layer_norm", lambda x, w, b: functional.layer_norm(x, shape[-1:], w, b, 1e-5), inputs, after=(1e-5,))


def activation(name, shape):
    return Case(name, getattr(functional, name), [4 * numbers(*shape)])


def add(shape, term):
    return Case("add", torch.add, [numbers(*shape), numbers(*term, seed=1)])


def blend(name, theirs, given_up):
    inputs = [numbers(*LARGE), numbers(*LARGE, seed=1)]
    return Case(name, theirs, inputs, after=(Tensor(0.3, ms.float32),), given_up=given_up)


def permute(shape, order):
    return Case("permute", lambda x: x.permute(order), [numbers(*shape)], after=(order,))


def attention(q, k):
    inputs = [numbers(*q), numbers(*k, seed=1), numbers(*k, seed=2)]
    return Case("attention", functional.scaled_dot_product_attention, inputs)


LARGE, SMALL = (3, 61, 5, 47), (2, 6, 1, 3)  # with more numbers than one thread takes, and with fewer
CASES = {
    "linear": linear((2, 350), 12, 31),
    "linear of one row without bias": linear((1,), 12, 31, bias=False),
    "linear of many rows": linear((4099,), 8, 257),
    "geglu": Case("geglu", geglu, [numbers(7, 5, 12), numbers(34, 12, seed=1), numbers(34, seed=2)]),
    "conv2d": conv2d((2, 5, 9, 7), 6),
    "conv2d in tiles": conv2d((3, 98, 18, 23), 112),
    "conv2d in whole tiles": conv2d((16, 64, 8, 8), 96),
    "conv2d of few pixels": conv2d((3, 6, 2, 3), 5),
    "conv2d of few pixels by 2": conv2d((3, 6, 5, 4), 5, stride=2),
    "conv2d 1x1": conv2d((3, 6, 3, 2), 5, kernel=1, bias=False),
    "conv2d of stride 2": conv2d((2, 5, 9, 7), 6, stride=2),
    "conv2d of unlike sides": conv2d((2, 5, 8, 6), 7, stride=2, sides=(0, 1, 0, 1)),
    "conv2d of patches": conv2d((2, 3, 28, 28), 9, kernel=14, stride=14, padding=0, bias=False),
    "conv2d doubled": doubled((2, 5, 3, 4), 6),
    "conv2d doubled in tiles": doubled((2, 96, 9, 11), 100),
    "conv over time": over_time((2, 5, 3, 11), 6),
    "conv over time in tiles": over_time((1, 100, 14, 61), 96),
    "conv over time in whole tiles": over_time((1, 64, 8, 9), 64),
    "add_bias": Case("add_bias", add_bias, [numbers(*LARGE), numbers(61, seed=1)], given_up=0),
    "add_bias of many rows": Case("add_bias", add_bias, [numbers(1 << 17, 8), numbers(8, seed=1)], given_up=0),
    "group_norm": group_norm((3, 96, 70, 41), 32),
    "group_norm of few": group_norm((2, 64, 3, 5), 32, eps=1e-6),
    "group_norm of a clip": group_norm((1, 32, 4, 900), 8),
    "layer_norm": layer_norm((2, 7, 48)),
    "layer_norm of long rows": layer_norm((3, 2049)),
    "silu": activation("silu", LARGE),
    "silu of few": activation("silu", SMALL),
    "gelu": activation("gelu", LARGE),
    "gelu of few": activation("gelu", SMALL),
    "self-attention": attention((2, 3, 50, 16), (2, 3, 50, 16)),
    "cross-attention": attention((2, 3, 37, 16), (2, 3, 5, 16)),
    "add a number to each row": add((3, 5, 61, 7), (3, 1, 61, 1)),
    "add a vector": add((3, 5, 61, 41), (41,)),
    "add a vector to each clip": add((3, 5, 7, 41), (3, 1, 1, 41)),
    "add": add((3, 5, 7, 41), (3, 5, 7, 41)),
    "add_scaled": blend("add_scaled", lambda x, y: x + 0.3 * y, 1),
    "lerp": blend("lerp", lambda x, y: torch.lerp(x, y, 0.3), 0),
    "reshape": Case("reshape", lambda x: x.reshape(-1, 35), [numbers(3, 7, 5, 5)], after=((-1, 35),)),
    "permute, the last axis stays": permute((3, 4, 5, 6), (0, 2, 1, 3)),
    "permute, five axes": permute((2, 3, 4, 5, 6), (2, 0, 3, 1, 4)),
    "permute, the last two": permute((3, 70, 33), (0, 2, 1)),
    "permute, all": permute((3, 4, 5, 6), (3, 1, 2, 0)),
    "halves": Case("halves", lambda x: x.chunk(2, 1)[1], [numbers(3, 6, 5)], after=(1,)),
    "entry": Case("entry", lambda x: x[2], [numbers(3, 6, 5)], after=(0, 2)),
    "entry of the second axis": Case("entry", lambda x: x[:, 2], [numbers(3, 6, 5)], after=(1, 2)),
    "narrow": Case("narrow", lambda x: x[:, :, :, 1:4], [numbers(2, 3, 4, 5, 6)], after=(3, 1, 3)),
    "narrow, the third": Case("narrow", lambda x: x[:, :, 1:3], [numbers(2, 3, 4, 5, 6)], after=(2, 1, 2)),
    "narrow, the last": Case("narrow", lambda x: x[..., 2:], [numbers(2, 3, 4, 5, 6)], after=(4, 2, 4)),
    "narrow to the end": Case("narrow", lambda x: x[3:], [numbers(5, 6)], after=(0, 3, 4)),
    "narrow, all": Case("narrow", lambda x: x, [numbers(5, 6)], after=(1, 0, 6)),
    "mean": Case("mean", torch.mean, [numbers(5, 600)]),
    "mean of each": Case("mean", lambda x: x.mean(1), [numbers(5, 600)], after=(1,)),
    "by_rows": Case("by_rows", torch.neg, [numbers(7, 2, 5)], (ops.neg,), (1 << 27,)),
}
LARGE_CASES = {"add_bias of many rows", "linear of many rows", "conv2d in tiles", "conv2d doubled in tiles"}


class Net(nn.Cell):
    """A call of the door, as networks make it."""

    def __init__(self, case):
        super().__init__()
        self.method, self.before, self.after = case.method, case.before, case.after

    def construct(self, *inputs):
        result = getattr(operators.current, self.method)(*self.before, *inputs, *self.after)
        return result[1] if isinstance(result, tuple) else result


def net_of(case):
    return GroupNormDoor(*case.before) if case.method == "group_norm" else Net(case)


# What is compiled one by one takes a third of a second for each operator.
SLOW = {"own, compiled", "ascend, compiled", "training, one by one"}


PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in IMPLEMENTATIONS]


@pytest.fixture(params=PARAMS)
def door(request, monkeypatch):
    """One implementation, in its mode; the session's conftest restores the mode."""
    make, mode = IMPLEMENTATIONS[request.param]
    if make is AscendOperators:
        mint_on_cpu.put_in_place(monkeypatch)
    ms.set_context(mode=mode)
    with using(make()) as implementation:
        yield implementation


def exact(theirs, inputs):
    return theirs(*(torch.from_numpy(array).double() for array in inputs)).numpy()


@pytest.mark.parametrize("name", CASES)
def test_values(door, name):
    case = CASES[name]
    tensors = list(map(Tensor, case.inputs))
    result = net_of(case)(*tensors)
    expected = exact(case.theirs, case.inputs)
    assert result.dtype == ms.float32 and result.shape == expected.shape
    assert np.abs(result.asnumpy() - expected).max() <= TOLERANCE[ms.float32] * np.abs(expected).max()
    for index, (tensor, array) in enumerate(zip(tensors, case.inputs)):
        assert index == case.given_up or np.array_equal(tensor.asnumpy(), array)


@pytest.mark.parametrize("name", sorted(set(CASES) - LARGE_CASES))
@pytest.mark.parametrize("make", [Operators, HostOperators, AscendOperators], ids=["own", "host", "ascend"])
def test_half_precision(make, name, monkeypatch):
    mint_on_cpu.put_in_place(monkeypatch)
    case = CASES[name]
    halves = [array.astype(np.float16) for array in case.inputs]
    with using(make()):
        result = net_of(case)(*map(Tensor, halves))
    expected = exact(case.theirs, halves)
    assert result.dtype == ms.float16
    assert np.abs(result.asnumpy() - expected).max() <= TOLERANCE[ms.float16] * np.abs(expected).max()


class Weighted(nn.Cell):
    """The sum of a result times given numbers, which come last."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def construct(self, *inputs):
        return (self.net(*inputs[:-1]) * inputs[-1]).sum()


class Gradients(nn.Cell):
    """For every input."""

    def __init__(self, net, count):
        super().__init__()
        self.gradients = ms.grad(Weighted(net), tuple(range(count)))

    def construct(self, *inputs):
        return self.gradients(*inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["graph", "pynative"])
def test_gradients(name, compiled):
    case = CASES[name]
    ms.set_context(mode=GRAPH_MODE if compiled else PYNATIVE_MODE)
    leaves = [torch.from_numpy(array).double().requires_grad_() for array in case.inputs]
    result = case.theirs(*leaves)
    weights = numbers(*result.shape, seed=9)
    (result * torch.from_numpy(weights).double()).sum().backward()
    with training():
        gradients = Gradients(net_of(case), len(leaves))(*map(Tensor, case.inputs), Tensor(weights))
    for gradient, leaf in zip(gradients if isinstance(gradients, tuple) else [gradients], leaves):
        expected = leaf.grad.numpy()
        assert np.abs(gradient.asnumpy() - expected).max() <= 2e-5 * np.abs(expected).max()


def test_every_operator_has_a_case():
    methods = {name for name, value in vars(Operators).items() if not name.startswith("_") and callable(value)}
    elsewhere = {"late", "attention_block", "images_at_once", "memoise", "call"}
    elsewhere |= {"adamw", "move_average", "square_sum", "stack"}
    assert methods == {case.method for case in CASES.values()} | elsewhere


def test_rows_in_blocks(monkeypatch):
    monkeypatch.setattr(host, "ROWS_BYTES", 3)
    sizes = []

    def twice(x):
        sizes.append(len(x))
        return ops.cat((x, -x), axis=1)

    x = numbers(7, 2, 5)
    result = HostOperators().by_rows(twice, Tensor(x), 1).asnumpy()
    np.testing.assert_array_equal(result, np.concatenate([x, -x], axis=1))
    assert sizes == [3, 3, 1]


class Counting:
    def __init__(self):
        self.calls = 0

    def sum(self, x, number):
        self.calls += 1
        return x + number


def test_what_is_memoised_is_computed_once_for_the_same_inputs_of_one_inference():
    counting, x = Counting(), Tensor(numbers(3))
    with inference():
        first = operators.current.memoise(counting.sum, x, 1)
        assert operators.current.memoise(counting.sum, x, 1) is first
        operators.current.memoise(counting.sum, x, 2)
        operators.current.memoise(counting.sum, Tensor(numbers(3)), 1)
        operators.current.memoise(Counting().sum, x, 1)
    assert counting.calls == 3
    with inference():
        operators.current.memoise(counting.sum, x, 1)
    assert counting.calls == 4  # parameters may have changed


def test_a_context_chooses_and_restores():
    ms.set_context(mode=GRAPH_MODE)
    outside = operators.current
    assert type(outside) is Operators
    with inference():
        assert type(operators.current) is HostOperators and ms.get_context("mode") == PYNATIVE_MODE
        with inference(compiled=True):
            assert type(operators.current) is CompiledOperators and ms.get_context("mode") == GRAPH_MODE
        assert type(operators.current) is HostOperators and ms.get_context("mode") == PYNATIVE_MODE
    with pytest.raises(ZeroDivisionError), training():
        assert type(operators.current) is TrainingOperators and operators.current.compiled
        raise ZeroDivisionError
    assert operators.current is outside and ms.get_context("mode") == GRAPH_MODE


def test_gelu_is_exact_to_fp32_everywhere():
    x = np.concatenate([np.linspace(-20, 20, 400_001), [-1e20, -1e4, -100, 0, 100, 1e4, 1e20]]).astype(np.float32)
    expected = functional.gelu(torch.from_numpy(x).double()).numpy()
    for door in (CompiledOperators(), HostOperators()):
        error = np.abs(door.gelu(Tensor(x)).asnumpy() - expected) / np.maximum(1, np.abs(x))
        assert error.max() < 1e-6


def test_a_large_mean_costs_a_group_norm_little():
    """E[x²] - E[x]² cancels: at a mean of 30 deviations three of seven digits are left."""
    case = group_norm((1, 32, 64, 64), 32, mean=90)
    for door, tolerance in ((CompiledOperators(), 8e-3), (HostOperators(), 2e-5)):
        with using(door):
            result = net_of(case)(*map(Tensor, case.inputs)).asnumpy()
        assert np.abs(result - exact(case.theirs, case.inputs)).max() <= tolerance


def test_networks_sampling_and_modules_know_the_door_alone():
    sources = [path for name in ("gm/networks", "gm/sampling", "modules") for path in (PROJECT / name).rglob("*.py")]
    assert len(sources) > 20
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gm.backend"):
                names = {alias.name for alias in node.names}
                assert node.module == "gm.backend.operators" or names == {"operators"}, path
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("gm.backend") for alias in node.names), path
