"""The exponential moving average of the trained weights, which is what is sampled with (SVD: 0.9999)."""

from contextlib import contextmanager
from typing import Dict, Iterator, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.backend import operators
from gm.errors import UserError
from gm.weights.parameters import set_parameter

FLAG = "--train.ema_decay"
PREFIX = "average"

_move = ops.MultitypeFuncGraph("ema_move")


@_move.register("Tensor", "Tensor", "Tensor")
def _move_one(rate, average, parameter):
    return ops.depend(True, operators.current.move_average(average, parameter, rate))


def checked_decay(decay: float) -> float:
    """Itself, if it is one.

    Raises:
        UserError: it is out of its range.
    """
    if not 0 <= decay < 1:
        raise UserError(f"{FLAG} is {decay:g}; it is 0 (no average) to just below 1, such as 0.9999")
    return decay


class WeightAverage(nn.Cell):
    """average ← average + (1 - d)·(weights - average) after each update.

    The decay d is min(decay, (1 + n)/(10 + n)) at the n-th update (from 0), so that a short run's average is not the
    weights that it started with (as in TensorFlow's ExponentialMovingAverage).

    Args:
        parameters: what is trained; the average starts at their present values.
        decay: 0 to 1, exclusive of 1.

    Raises:
        UserError: a decay out of its range.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.decay = checked_decay(decay)
        self.parameters_ = ms.ParameterTuple(parameters)
        self.averages = ms.ParameterTuple([_copy(parameter) for parameter in parameters])
        self.map = ops.HyperMap()

    def construct(self, rate):
        """Moves the average towards the weights by `rate`."""
        return self.map(ops.partial(_move, rate), self.averages, self.parameters_)

    def update(self, updates: int) -> None:
        """Moves the average towards the weights after `updates` updates before this one."""
        if not operators.current.updates_from_host:
            self(Tensor(self.rate(updates), ms.float32))
            return
        for average, parameter in zip(self.averages, self.parameters_):
            operators.current.move_average(average, parameter, self.rate(updates))

    def rate(self, updates: int) -> float:
        """1 - d after `updates` updates before this one."""
        return 1 - min(self.decay, (1 + updates) / (10 + updates))

    def state(self) -> Dict[str, Parameter]:
        """`average.NAME` -> the average."""
        return {average.name: average for average in self.averages}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block the network has the averaged weights, and the averages hold the network's."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, average in zip(self.parameters_, self.averages):
            weights = np.array(parameter.asnumpy())
            set_parameter(parameter, np.array(average.asnumpy()))
            set_parameter(average, weights)


def _copy(parameter: Parameter) -> Parameter:
    return Parameter(Tensor(np.array(parameter.asnumpy())), f"{PREFIX}.{parameter.name}", requires_grad=False)
