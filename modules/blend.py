"""The learned blend of a spatial and a temporal branch."""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer


class AlphaBlender(nn.Cell):
    """alpha = sigmoid(mix_factor), a learned share; sgm's `learned_with_images` for clips without still images."""

    def __init__(self, mix_factor: float = 0.5) -> None:
        super().__init__()
        self.mix_factor = Parameter(initializer(mix_factor, (1,), ms.float32))

    def construct(self) -> Tensor:
        """alpha, a number in 0..1: shape ()."""
        return ops.sigmoid(self.mix_factor.astype(ms.float32)).reshape(())
