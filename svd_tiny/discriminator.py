"""The discriminator of patches that an autoencoder is trained against (Isola et al. 2017; Rombach et al. 2022)."""

from typing import List, Tuple

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from gm.device import kernels

KERNEL = 4
WEIGHT_STD = 0.02  # of the initial weights, as in pix2pix
SLOPE = 0.2  # of the leaky ReLU
NORM_EPS = 1e-5
NORM_GROUPS = 8


class PatchDiscriminator(nn.Cell):
    """Tells for every patch of a picture whether it is a photograph's: the higher, the more so.

    As in latent diffusion, with group norms in place of batch norms, so that a picture's score is its own.

    Args:
        width: channels after the first convolution, a multiple of 8; they double up to eight times as many.
        downsamplings: convolutions of stride 2; three see patches of 70x70 pixels, two of 34x34.
    """

    def __init__(self, width: int = 32, downsamplings: int = 3) -> None:
        super().__init__(auto_prefix=False)
        widths = [3] + [width * min(2**index, 8) for index in range(downsamplings + 1)] + [1]
        self.strides = [2] * downsamplings + [1, 1]
        pairs = list(zip(widths, widths[1:]))
        shapes = [(out, channels, KERNEL, KERNEL) for channels, out in pairs]
        self.weights = _parameters("weight", [(shape, Normal(WEIGHT_STD)) for shape in shapes])
        self.biases = _parameters("bias", [((out,), "zeros") for _, out in pairs])
        normed = [(out,) for _, out in pairs[1:-1]]
        self.norm_weights = _parameters("norm_weight", [(shape, "ones") for shape in normed])
        self.norm_biases = _parameters("norm_bias", [(shape, "zeros") for shape in normed])
        self.convs = [
            ops.Conv2D(out, KERNEL, pad_mode="pad", pad=1, stride=stride)
            for (_, out), stride in zip(pairs, self.strides)
        ]

    def construct(self, x: Tensor, frozen: bool) -> Tensor:
        """Scores (n, 1, h', w') of (n, 3, H, W), range -1..1; `frozen` lets no gradient reach the weights."""
        last = len(self.strides) - 1
        for index in range(len(self.strides)):
            x = ops.bias_add(self.convs[index](x, _use(self.weights[index], frozen)), _use(self.biases[index], frozen))
            if 0 < index < last:
                norm = _use(self.norm_weights[index - 1], frozen), _use(self.norm_biases[index - 1], frozen)
                x = kernels.group_norm(x, NORM_GROUPS, *norm, NORM_EPS)
            if index < last:
                x = ops.leaky_relu(x, SLOPE)
        return x


def _use(parameter: Parameter, frozen: bool) -> Tensor:
    return ops.stop_gradient(parameter) if frozen else parameter


def _parameters(kind: str, starts: List[Tuple[Tuple[int, ...], object]]) -> ms.ParameterTuple:
    values = (initializer(start, shape, ms.float32) for shape, start in starts)
    return ms.ParameterTuple(
        [Parameter(value, f"discriminator.{index}.{kind}") for index, value in enumerate(values)]
    )
