"""AdamW (Loshchilov & Hutter 2019) with the semantics of PyTorch's: bias correction, decoupled weight decay.

MindSpore's fused kernel computes `p -= lr·(m / (√v + ε) + λ·p)`, without bias correction. With b1 = 1 - β1ᵗ and
b2 = 1 - β2ᵗ, PyTorch's update is

    p -= η·λ·p + η/b1 · m / (√v/√b2 + ε)  =  lr·(m / (√v + ε·√b2) + η·λ/lr · p),   lr = η·√b2 / b1,

so the same kernel, given three other numbers, gives PyTorch's values, in place and without temporaries.
"""

import math
from typing import Dict, List, NamedTuple, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.backend import operators
from gm.errors import UserError

FLAG = "--train.optimizer."
FIRST_MOMENT, SECOND_MOMENT = "adam_m", "adam_v"

_update = ops.MultitypeFuncGraph("adamw_update")


@_update.register(*["Tensor"] * 10, "Bool")
def _update_one(scale, lr, beta1, beta2, eps, decay, parameter, first, second, gradient, owned):
    """One tensor's update; of a sharded optimizer, only on the device that owns the tensor."""
    if not owned:
        return True
    update = operators.current.adamw
    return ops.depend(True, update(parameter, first, second, gradient, scale, lr, beta1, beta2, eps, decay))


class AdamWOptions(NamedTuple):
    """The numbers of AdamW; those of the moments are PyTorch's defaults."""

    betas: Tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def check(self) -> "AdamWOptions":
        """Itself, if the numbers can be used.

        Raises:
            UserError: one is out of its range.
        """
        if len(self.betas) != 2 or not all(0 < beta < 1 for beta in self.betas):
            raise UserError(f"{FLAG}betas is {list(self.betas)}; two numbers between 0 and 1 are expected")
        if not 0 < self.eps < math.inf:
            raise UserError(f"{FLAG}eps is {self.eps:g}; it is above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"{FLAG}weight_decay is {self.weight_decay:g}; it is 0 or more")
        return self


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
        done = self.map(
            ops.partial(_update, scale, lr, beta1, beta2, eps, decay),
            self._parameters,
            self.first,
            self.second,
            gradients,
            self.optim_filter,
        )
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
        kernel_lr = lr * root / (1 - beta1**step)
        kernel_decay = decay * (1 - beta1**step) / root
        return kernel_lr, beta1, beta2, eps * root, kernel_decay

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
        parameters, owned = [*self._parameters] * 2, [*self.optim_filter] * 2
        return list(zip([*self.first, *self.second], parameters, owned))

    def _moments(self, prefix: str) -> ms.ParameterTuple:
        """Zeros in the parameters' shapes; a single number for what another device owns."""
        shapes = [p.shape if owned else (1,) for p, owned in zip(self._parameters, self.optim_filter)]
        moments = [ops.zeros(shape, ms.float32) for shape in shapes]
        return ms.ParameterTuple(
            [Parameter(m, f"{prefix}.{p.name}", requires_grad=False) for m, p in zip(moments, self._parameters)]
        )
