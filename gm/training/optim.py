"""The optimizer, its learning rate over a run, and the average of the weights.

AdamW (Loshchilov & Hutter 2019) has the semantics of PyTorch's: bias correction and decoupled weight decay. MindSpore's
fused kernel computes `p -= lr·(m / (√v + ε) + λ·p)`, without bias correction. With b1 = 1 - β1ᵗ and b2 = 1 - β2ᵗ,
PyTorch's update is

    p -= η·λ·p + η/b1 · m / (√v/√b2 + ε)  =  lr·(m / (√v + ε·√b2) + η·λ/lr · p),   lr = η·√b2 / b1,

so the same kernel, given three other numbers, gives PyTorch's values, in place and without temporaries.
"""

import math
from contextlib import contextmanager
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.backend import operators
from gm.weights.parameters import set_parameter

CONSTANT, COSINE = "constant", "cosine_decay"
FIRST_MOMENT, SECOND_MOMENT, AVERAGE = "adam_m", "adam_v", "average"  # what their tensors' names begin with

_update = ops.MultitypeFuncGraph("adamw_update")
_move = ops.MultitypeFuncGraph("ema_move")


@_update.register(*["Tensor"] * 10, "Bool")
def _update_one(scale, lr, beta1, beta2, eps, decay, parameter, first, second, gradient, owned):
    """One tensor's update; of a sharded optimizer, only on the device that owns the tensor."""
    if not owned:
        return True
    update = operators.current.adamw
    return ops.depend(True, update(parameter, first, second, gradient, scale, lr, beta1, beta2, eps, decay))


@_move.register("Tensor", "Tensor", "Tensor")
def _move_one(rate, average, parameter):
    return ops.depend(True, operators.current.move_average(average, parameter, rate))


class LearningRate:
    """Rises linearly to `lr` in the first `warmup_steps` updates, then falls to `end_lr` at the last one.

    Args:
        name: constant (stays at lr), cosine_decay (half a cosine) or polynomial_decay.
        lr: the highest rate.
        end_lr: the last one of the decaying schedules, 0 to lr.
        warmup_steps: updates until lr is reached.
        power: of polynomial_decay; 1 is a straight line.
        total_steps: updates in the whole run.
    """

    def __init__(self, name: str, lr: float, end_lr: float, warmup_steps: int, power: float, total_steps: int) -> None:
        self.name, self.lr, self.end_lr, self.power = name, lr, end_lr, power
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    def __call__(self, step: int) -> float:
        """The rate of an update; the first is step 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.name == CONSTANT:
            return self.lr
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - 1 - self.warmup_steps))
        fall = (1 + math.cos(math.pi * progress)) / 2 if self.name == COSINE else (1 - progress) ** self.power
        return self.end_lr + (self.lr - self.end_lr) * fall


class AdamWOptions(NamedTuple):
    """The numbers of AdamW; those of the moments are PyTorch's defaults."""

    betas: Tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01


class AdamW(nn.Optimizer):
    """Updates fp32 parameters in place. The step count and the learning rate are the caller's.

    Where MindSpore's optimizer sharding is on (data parallel with `enable_parallel_optimizer`, on Ascend), each device
    holds the moments of its share of the tensors, updates those, and broadcasts them.

    Args:
        parameters: what is trained.
        options: betas, eps and weight decay.
    """

    _support_parallel_optimizer = True

    def __init__(self, parameters: Sequence[Parameter], options: AdamWOptions) -> None:
        super().__init__(0.0, list(parameters))
        self.options = options
        self.first = self._moments(FIRST_MOMENT)
        self.second = self._moments(SECOND_MOMENT)
        self.map = ops.HyperMap()

    def construct(self, gradients, scale, lr, beta1, beta2, eps, decay):
        """One update with `scale`·gradients by MindSpore's kernel; for the numbers see :meth:`numbers`."""
        update = ops.partial(_update, scale, lr, beta1, beta2, eps, decay)
        done = self.map(update, self._parameters, self.first, self.second, gradients, self.optim_filter)
        if self.use_parallel:
            done = self.broadcast_params(done)
        return done

    def update(self, gradients: Sequence[Tensor], scale: float, step: int, lr: float) -> None:
        """One update with `scale`·gradients; the first is step 1; lr 0 changes no parameter."""
        numbers = (scale, *self.numbers(step, lr))
        if self.use_parallel or not operators.current.updates_from_host:
            self(ms.mutable(tuple(gradients)), *(Tensor(number, ms.float32) for number in numbers))
            return
        for tensors in zip(self._parameters, self.first, self.second, gradients):
            operators.current.adamw(*tensors, *numbers)

    def numbers(self, step: int, lr: float) -> Tuple[float, ...]:
        """The kernel's lr, β1, β2, ε and decay."""
        (beta1, beta2), eps, decay = self.options
        root = math.sqrt(1 - beta2**step)
        bias = 1 - beta1**step
        return lr * root / bias, beta1, beta2, eps * root, decay * bias / root

    def state(self) -> Dict[str, Parameter]:
        """`adam_m.NAME` and `adam_v.NAME` -> the moments of every tensor that this device owns."""
        return {moment.name: moment for moment, _, owned in self._all_moments() if owned}

    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """The names and shapes of all moments, other devices' included."""
        return {moment.name: tuple(parameter.shape) for moment, parameter, _ in self._all_moments()}

    def gathered(self) -> Dict[str, Tensor]:
        """All moments, those of other devices fetched from there; every process has to call it."""
        if not self.use_parallel:
            return self.state()
        moments = {}
        for (moment, parameter, owned), owner in zip(self._all_moments(), [*self.param_rank, *self.param_rank]):
            value = Tensor(np.array(moment.asnumpy())) if owned else ops.zeros(parameter.shape, ms.float32)
            moments[moment.name] = Tensor(ops.Broadcast(owner)((value,))[0].asnumpy())
        return moments

    def _all_moments(self) -> List[Tuple[Parameter, Parameter, bool]]:
        """Every moment, the parameter that it belongs to, and whether this device owns it."""
        return list(zip([*self.first, *self.second], [*self._parameters] * 2, [*self.optim_filter] * 2))

    def _moments(self, prefix: str) -> ms.ParameterTuple:
        """Zeros in the parameters' shapes; a single number for what another device owns."""
        shapes = [p.shape if owned else (1,) for p, owned in zip(self._parameters, self.optim_filter)]
        zeros = [Tensor(np.zeros(shape, np.float32)) for shape in shapes]
        names = [f"{prefix}.{parameter.name}" for parameter in self._parameters]
        return ms.ParameterTuple([Parameter(*pair, requires_grad=False) for pair in zip(zeros, names)])


class WeightAverage(nn.Cell):
    """average ← average + (1 - d)·(weights - average) after each update: what is sampled with (SVD: decay 0.9999).

    The decay d is min(decay, (1 + n)/(10 + n)) at the n-th update (from 0), so that a short run's average is not the
    weights that it started with (as in TensorFlow's ExponentialMovingAverage).

    Args:
        parameters: what is trained; the average starts at their present values.
        decay: 0 to 1, exclusive of 1.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.decay = decay
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
    return Parameter(Tensor(np.array(parameter.asnumpy())), f"{AVERAGE}.{parameter.name}", requires_grad=False)
