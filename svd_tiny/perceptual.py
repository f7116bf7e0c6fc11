"""A perceptual distance: how far apart two pictures are for a network that was trained to tell a thousand things apart.

The distance is that of LPIPS (Zhang et al. 2018, equation 1) with all channels weighing the same. The network is the
beginning of EfficientNet-Lite0 (Tan & Le 2019), with its batch normalisations folded into the convolutions; training
alone needs it.
"""

from typing import List, Mapping, NamedTuple, Tuple

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

BATCH_NORM_EPS = 1e-3
SQUARES_FLOOR = 1e-6  # added to a feature vector's square, so that a vector of zeros has a gradient
STEM = "_conv_stem", "_bn0"


class Block(NamedTuple):
    """One inverted residual block of EfficientNet-Lite0."""

    kernel: int
    stride: int
    tap: bool  # whether its result counts in the distance: the last one of each size and width does


BLOCKS = (
    Block(3, 1, True), Block(3, 2, False), Block(3, 1, True), Block(5, 2, False), Block(5, 1, True),
    Block(3, 2, False), Block(3, 1, False), Block(3, 1, True),
)  # fmt: skip


class FrozenConv(nn.Cell):
    """A convolution with "same" padding and the batch normalisation after it, as one convolution that is not trained.

    Args:
        weights: of the network, by their PyTorch names.
        conv, norm: names of the two layers.
        stride: of the convolution.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], conv: str, norm: str, stride: int = 1) -> None:
        super().__init__()
        kernel = weights[f"{conv}.weight"]
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + BATCH_NORM_EPS)
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        out, per_group, size, _ = kernel.shape
        groups = out if (per_group, size > 1) == (1, True) else 1  # depthwise, or all channels together
        self.weight = _frozen(kernel * scale.reshape(-1, 1, 1, 1), f"{conv}.weight")
        self.bias = _frozen(bias, f"{conv}.bias")
        self.conv = ops.Conv2D(out, size, pad_mode="same", stride=stride, group=groups)

    def construct(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h / stride, w / stride)."""
        return ops.bias_add(self.conv(x, self.weight), self.bias)


class InvertedResidual(nn.Cell):
    """Expansion, depthwise convolution and projection; the input is added where the shapes allow it."""

    def __init__(self, weights: Mapping[str, np.ndarray], index: int, block: Block) -> None:
        super().__init__()
        name = f"_blocks.{index}."
        expands = f"{name}_expand_conv.weight" in weights
        self.expand = FrozenConv(weights, f"{name}_expand_conv", f"{name}_bn0") if expands else None
        self.depthwise = FrozenConv(weights, f"{name}_depthwise_conv", f"{name}_bn1", block.stride)
        self.project = FrozenConv(weights, f"{name}_project_conv", f"{name}_bn2")
        channels = weights[f"{name}_{'expand' if expands else 'depthwise'}_conv.weight"].shape[int(expands)]
        self.residual = block.stride == 1 and channels == self.project.weight.shape[0]

    def construct(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else ops.relu6(self.expand(x))
        h = self.project(ops.relu6(self.depthwise(h)))
        return x + h if self.residual else h


class EfficientNetFeatures(nn.Cell):
    """What the network sees at a half, a quarter, an eighth and a sixteenth of a picture's size.

    Args:
        weights: EfficientNet-Lite0's, by their PyTorch names, fp32.
    """

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        super().__init__(auto_prefix=False)
        self.stem = FrozenConv(weights, *STEM, stride=2)
        self.blocks = nn.CellList([InvertedResidual(weights, index, block) for index, block in enumerate(BLOCKS)])

    def construct(self, x: Tensor) -> Tuple[Tensor, ...]:
        """(n, 3, H, W), range -1..1, H and W multiples of 16 -> five tensors (n, c, h, w)."""
        x = ops.relu6(self.stem(x))
        features = (x,)
        for index in range(len(BLOCKS)):
            x = self.blocks[index](x)
            if BLOCKS[index].tap:
                features += (x,)
        return features


class PerceptualDistance(nn.Cell):
    """Squared differences of unit feature vectors, averaged over the picture, summed over the features.

    Args:
        features: the network.
    """

    def __init__(self, features: EfficientNetFeatures) -> None:
        super().__init__(auto_prefix=False)
        self.features = features

    def construct(self, decoded: Tensor, frames: Tensor) -> Tensor:
        """Both (n, 3, H, W), range -1..1 -> (n,)."""
        distance = 0.0
        for one, other in zip(self.features(decoded), self.features(frames)):
            squares = ops.square(_unit(one) - _unit(other)).sum(axis=1)  # n h w
            distance = distance + squares.reshape(squares.shape[0], -1).mean(1)
        return distance


def needed_names() -> List[str]:
    """The beginnings of the names of all tensors that the features are made from."""
    return [f"{name}." for name in (*STEM, *(f"_blocks.{index}" for index in range(len(BLOCKS))))]


def _unit(x: Tensor) -> Tensor:
    return x * ops.rsqrt(ops.square(x).sum(axis=1, keepdims=True) + SQUARES_FLOOR)


def _frozen(values: np.ndarray, name: str) -> Parameter:
    return Parameter(Tensor(values.astype(np.float32)), f"features.{name}", requires_grad=False)
