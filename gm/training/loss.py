"""The network with its loss: a weighted mean squared error of the raw output F (:mod:`gm.training.objective`)."""

from typing import Tuple

import mindspore as ms
from mindspore import Tensor, nn, ops


class DiffusionLoss(nn.Cell):
    """The mean loss of a batch, multiplied by the loss scale, and the loss of each clip; both in fp32.

    Args:
        network: (x, c_noise, crossattn, vector, num_frames) -> F.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(
        self,
        x: Tensor,
        c_noise: Tensor,
        crossattn: Tensor,
        vector: Tensor,
        target: Tensor,
        weight: Tensor,
        loss_scale: Tensor,
    ) -> Tuple[Tensor, Tensor]:
        """For the shapes see :class:`gm.training.objective.TrainInputs`; loss_scale: a number -> (a number, (b,))."""
        b = c_noise.shape[0]
        prediction = self.network(x, c_noise, crossattn, vector).astype(ms.float32)
        difference = (prediction - target).reshape(b, -1)  # (b t) c h w -> b (t c h w)
        clip_losses = ops.mean(ops.square(difference), 1) * weight
        return ops.mean(clip_losses) * loss_scale, clip_losses
