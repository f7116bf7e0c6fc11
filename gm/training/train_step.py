"""One optimizer step: gradients of one or more batches, their mean over the devices, clipping, AdamW and the average.

The graphs are few and do all the arithmetic; what is decided once per step (is it finite, how much to clip, the next
loss scale) is decided on the host, the same way in graph and PyNative mode.
"""

import math
from typing import NamedTuple, Optional, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.backend import operators
from gm.training.distributed import Communicator
from gm.training.ema import WeightAverage
from gm.training.loss_scale import LossScale
from gm.training.optim import AdamW
from gm.training.recipes import Inputs

CLIP_EPS = 1e-6  # PyTorch's, in clip_grad_norm_
SQUARES_AT_ONCE = 64  # tensors

_square_sum = ops.MultitypeFuncGraph("square_sum")
_add = ops.MultitypeFuncGraph("add_gradients")


@_square_sum.register("Tensor")
def _square_sum_one(gradient):
    return operators.current.square_sum(gradient)


@_add.register("Tensor", "Tensor")
def _add_one(total, gradient):
    return total + gradient


class Gradients(nn.Cell):
    """Forward and backward through the network, for the trained parameters only.

    Args:
        loss: the network with its loss, as :class:`gm.training.loss.DiffusionLoss`.
        parameters: what is trained; nothing is computed or kept for the others.
    """

    def __init__(self, loss: nn.Cell, parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = ms.value_and_grad(loss, None, weights=ms.ParameterTuple(parameters), has_aux=True)

    def construct(self, *inputs):
        """Loss and gradients.

        Args:
            inputs: what the loss takes, the loss scale last.

        Returns:
            The clips' losses (b,), and a tuple of gradients.
        """
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
    """Every tensor's sum of squares.

    The gradients are not handed on, for what a compiled network is given and returns, it copies.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()

    def construct(self, gradients):
        """A tuple of n gradients -> (n,)."""
        return ops.stack(self.map(_square_sum, gradients))


class StepResult(NamedTuple):
    """What a step did."""

    loss_sums: np.ndarray  # see gm.training.sigma_buckets, over all batches and devices
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
        self.updates = 0
        self._to_fuse = fuse_kernels
        self.batches = batches
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
        """Of all gradients together; a group at a time, for all squares at once are as large as the gradients."""
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
