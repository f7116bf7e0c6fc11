"""Loops (:mod:`gm.backend.kernels`) as operators of a compiled network, on CPU.

They are called from the graph with the operands' own memory; MindSpore copies what they return.
"""

import threading
from functools import cache
from typing import Callable, Sequence

import numpy as np
from mindspore import Tensor, nn, ops

from gm.backend.kernels import sums
from gm.backend.kernels.threads import spread

Shape = Sequence[int]

_thread = threading.local()


@cache
def operator(function: Callable, out_shape: Callable) -> ops.Custom:
    """An operator of one fp32 tensor.

    Args:
        function: of an array and of the array of the result, which it fills.
        out_shape: the result's shape from the input's.
    """

    def run(x: np.ndarray) -> np.ndarray:
        out = _memory(out_shape(x.shape))
        function(x, out)
        return out

    return ops.Custom(run, lambda shape: list(out_shape(shape)), lambda dtype: dtype, func_type="pyfunc")


def _memory(shape: Shape) -> np.ndarray:
    """For a result, until this thread's next one: it is copied at once."""
    size = int(np.prod(shape))
    if size > getattr(_thread, "memory", np.empty(0)).size:
        _thread.memory = np.empty(size, np.float32)
    return _thread.memory[:size].reshape(shape)


class LinearLoop(nn.Cell):
    """A linear map of one tensor as a loop, with the adjoint loop as its gradient.

    Args:
        loop, adjoint: functions of an array and of the array of the result, which they fill.
        out_shape, in_shape: the result's shape from the input's, and the other way round.
    """

    def __init__(self, loop: Callable, adjoint: Callable, out_shape: Callable, in_shape: Callable) -> None:
        super().__init__()
        self.loop, self.adjoint = operator(loop, out_shape), operator(adjoint, in_shape)

    def construct(self, x: Tensor) -> Tensor:
        """Any shape that the loop takes, fp32."""
        return self.loop(x)

    def bprop(self, x, out, dout):
        """The gradient of `x` from that of the result."""
        return (self.adjoint(dout),)


class BiasAdd(nn.Cell):
    """A vector added to every row, with the bias' gradient as a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.add, self.sum = ops.BiasAdd(), operator(_sum_of_rows, _row)

    def construct(self, y: Tensor, bias: Tensor) -> Tensor:
        """y: (n, c); bias: (c,), both fp32 -> (n, c)."""
        return self.add(y, bias)

    def bprop(self, y, bias, out, dout):
        """The gradients of `y` and of `bias` from that of the result."""
        return dout, self.sum(dout)


def _row(shape: Shape) -> Shape:
    return shape[1:]


def _sum_of_rows(x: np.ndarray, out: np.ndarray) -> None:
    blocks = np.empty((-(-len(x) // sums.ROWS), out.size), np.float32)
    spread(sums.over_rows, len(blocks), x.size, x, blocks)
    out[:] = blocks.sum(0, dtype=np.float64)
