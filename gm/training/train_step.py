"""One optimizer step: gradients of one or more batches, their mean over the devices, clipping, AdamW and the average.

The graphs are few and do all the arithmetic; what is decided once per step (is it finite, how much to clip, the next
loss scale) is decided on the host, the same way in graph and PyNative mode.
"""

import math
from typing import Annotated, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.backend import operators
from gm.config.values import Range, expect
from gm.training.distributed import Communicator
from gm.training.optim import AdamW, WeightAverage

CLIP_EPS = 1e-6  # PyTorch's, in clip_grad_norm_
SQUARES_AT_ONCE = 64  # tensors
SMALLEST, LARGEST = 1.0, 2.0**24  # loss scales

_square_sum = ops.MultitypeFuncGraph("square_sum")
_add = ops.MultitypeFuncGraph("add_gradients")


@_square_sum.register("Tensor")
def _square_sum_one(gradient):
    return operators.current.square_sum(gradient)


@_add.register("Tensor", "Tensor")
def _add_one(total, gradient):
    return total + gradient


class Inputs(Protocol):
    """One batch for a loss."""

    def tensors(self) -> List[Tensor]:
        """What the loss takes, in its order, but for the loss scale."""

    def loss_sums(self, losses: np.ndarray) -> np.ndarray:
        """Sums and numbers of the clips' losses (b,), (2, buckets); see :func:`gm.training.objective.mean_losses`."""


class LossScale:
    """The factor that keeps small fp16 gradients from vanishing: lowered when they overflow, raised when they do not.

    As MindSpore's `DynamicLossScaler`, on the host: its state is plain numbers.

    Args:
        loss_scale_value: to start with, 1 to 2²⁴.
        scale_factor: what it is divided by after an overflow, and multiplied by after a window without.
        scale_window: updates in a window.
    """

    def __init__(self, loss_scale_value: float = 65536.0, scale_factor: float = 2.0, scale_window: int = 1000) -> None:
        self.value, self.factor, self.window = float(loss_scale_value), float(scale_factor), scale_window
        self.finite_updates = 0  # in a row

    @property
    def can_shrink(self) -> bool:
        """Whether a smaller scale may cure gradients that are not finite."""
        return self.value > SMALLEST

    def adjust(self, finite: bool) -> None:
        """Takes note of an update's gradients."""
        if not finite:
            self.value, self.finite_updates = max(self.value / self.factor, SMALLEST), 0
            return
        self.finite_updates += 1
        if self.finite_updates >= self.window:
            self.value, self.finite_updates = min(self.value * self.factor, LARGEST), 0

    def state(self) -> Dict[str, float]:
        """What :meth:`restore` takes."""
        return {"value": self.value, "finite_updates": self.finite_updates}

    def restore(self, state: Dict[str, float]) -> None:
        """Goes on where another one was.

        Raises:
            OptionError: numbers that no state has.
        """
        expect("loss_scale.value", state.get("value"), Annotated[float, Range(SMALLEST, LARGEST)])
        expect("loss_scale.finite_updates", state.get("finite_updates"), Annotated[int, Range(0, 2**53)])
        self.value, self.finite_updates = float(state["value"]), int(state["finite_updates"])


class NoLossScale(LossScale):
    """Always 1: fp32 needs none."""

    def __init__(self) -> None:
        super().__init__(loss_scale_value=SMALLEST)

    def adjust(self, finite: bool) -> None:
        """Nothing changes."""


class Gradients(nn.Cell):
    """Forward and backward through the network, for the trained parameters only.

    Args:
        loss: the network with its loss, as :class:`gm.training.objective.DiffusionLoss`.
        parameters: what is trained; nothing is computed or kept for the others.
    """

    def __init__(self, loss: nn.Cell, parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = ms.value_and_grad(loss, None, weights=ms.ParameterTuple(parameters), has_aux=True)

    def construct(self, *inputs):
        """What the loss takes, the loss scale last -> the clips' losses (b,), and a tuple of gradients."""
        (_, clip_losses), gradients = self.gradients(*inputs)
        return clip_losses, gradients


class Accumulation(nn.Cell):
    """Adds a batch's gradients to those of the batches before it."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()

    def construct(self, sums, gradients):
        """Two tuples of gradients -> the tuple of their sums."""
        return self.map(_add, sums, gradients)


class SquareSums(nn.Cell):
    """Every tensor's sum of squares; the gradients are not returned, since a graph copies its inputs and outputs."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()

    def construct(self, gradients):
        """A tuple of n gradients -> (n,)."""
        return operators.current.stack(self.map(_square_sum, gradients))


class StepResult(NamedTuple):
    """What a step did."""

    loss_sums: np.ndarray  # see Inputs.loss_sums, over all batches and devices
    grad_norm: float  # of the mean gradient, before clipping
    updated: bool  # False: something was not finite, and nothing was changed
    overflow: bool  # only the scaled gradients were not finite: the loss scale was lowered


class TrainStep:
    """Applies one update; does nothing but count where the loss or the gradients are not finite.

    Args:
        loss: the network with its loss.
        parameters: what is trained, fp32, in the optimizer's order.
        optimizer: with its moments.
        average: of the weights; None for none.
        loss_scale: for fp16 gradients.
        communicator: the other processes.
        batches: in each step.
        clip_norm: the largest norm of all gradients together; None for no limit.
        drop_overflow_update: go on with the next batches after an overflow of fp16; False repeats the step with the
            lower loss scale, so that no batch is lost.
        fuse_kernels: compile fused kernels where that is possible (:mod:`gm.backend.kernel_fusion`).
    """

    def __init__(
        self,
        loss: nn.Cell,
        parameters: Sequence[Parameter],
        optimizer: AdamW,
        average: Optional[WeightAverage],
        loss_scale: LossScale,
        communicator: Communicator,
        batches: int = 1,
        clip_norm: Optional[float] = None,
        drop_overflow_update: bool = True,
        fuse_kernels: bool = False,
    ) -> None:
        self.optimizer, self.average, self.loss_scale = optimizer, average, loss_scale
        self.communicator, self.clip_norm, self.drop_overflow_update = communicator, clip_norm, drop_overflow_update
        self.updates, self.batches = 0, batches
        self._to_fuse = fuse_kernels
        self._gradients = Gradients(loss, parameters)
        self._accumulate = Accumulation()
        self._reduce = communicator.reducer(parameters)
        self._square_sums = SquareSums()

    def __call__(self, batches: Sequence[Inputs], lr: float) -> StepResult:
        """One step over `batches` batches."""
        while True:
            with operators.training(self._to_fuse):  # every graph is compiled by the end of the first update
                gradients, result = self._mean_gradients(batches)
                if result.updated:
                    self._update(gradients, result.grad_norm, lr)
                    self._to_fuse = False
            self.loss_scale.adjust(result.updated)
            if self.drop_overflow_update or not result.overflow:
                return result

    def _mean_gradients(self, batches: Sequence[Inputs]) -> Tuple[Tuple[Tensor, ...], StepResult]:
        """Sums over the batches, averaged over the devices, still multiplied by the loss scale."""
        loss_sums, total = 0.0, None
        loss_scale = Tensor(self.loss_scale.value, ms.float32)
        for batch in batches:
            clip_losses, gradients = self._gradients(*batch.tensors(), loss_scale)
            total = gradients if total is None else self._accumulate(ms.mutable(total), ms.mutable(gradients))
            loss_sums = loss_sums + batch.loss_sums(clip_losses.asnumpy().astype(np.float64))
        gradients = total if self._reduce is None else self._reduce(ms.mutable(total))
        loss_sums = self.communicator.sum(loss_sums)
        norm = math.sqrt(self._square_sum(gradients)) * self._unscale
        loss_finite = bool(np.isfinite(loss_sums).all())
        finite = loss_finite and math.isfinite(norm)
        return gradients, StepResult(loss_sums, norm, finite, loss_finite and not finite and self.loss_scale.can_shrink)

    def _square_sum(self, gradients: Tuple[Tensor, ...]) -> float:
        """Of all gradients together, a group at a time, since all squares at once are as large as the gradients."""
        if operators.current.updates_from_host:
            return sum(map(operators.current.square_sum, gradients))
        starts = range(0, len(gradients), SQUARES_AT_ONCE)
        groups = [gradients[start : start + SQUARES_AT_ONCE] for start in starts]
        return sum(self._square_sums(ms.mutable(group)).asnumpy().astype(np.float64).sum() for group in groups)

    @property
    def _unscale(self) -> float:
        return 1 / (self.loss_scale.value * self.batches)

    def _update(self, gradients: Tuple[Tensor, ...], norm: float, lr: float) -> None:
        scale = self._unscale
        if self.clip_norm is not None:
            scale *= min(1.0, self.clip_norm / (norm + CLIP_EPS))
        self.optimizer.update(gradients, scale, self.updates + 1, lr)
        if self.average is not None:
            self.average.update(self.updates)
        self.updates += 1
