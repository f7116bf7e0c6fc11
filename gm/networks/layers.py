"""Layers with the published checkpoints' parameter names (`weight`, `bias`), norms included.

Every layer has a `compute_dtype`: None computes in the parameters' type; fp16 or bf16 casts input and parameters on
the way in (mixed precision over fp32 masters, :mod:`gm.networks.precision`). Norms always compute in fp32.
"""

import math
from typing import Optional, Sequence, Tuple, Union

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Uniform, initializer

from gm.backend import operators
from gm.errors import UserError

GROUPS = 32  # of every GroupNorm in SVD; small networks need fewer, to keep several channels in each


def _uniform(shape: Sequence[int], fan_in: int, zero: bool = False) -> Tensor:
    """U(-1/√fan_in, 1/√fan_in), or zeros for layers that must start silent."""
    return initializer("zeros" if zero else Uniform(1 / math.sqrt(fan_in)), tuple(shape), ms.float32)


class Linear(nn.Cell):
    """`x @ weightᵀ + bias` over the last axis.

    Args:
        zero_init: start as the zero map (for the last layer of a residual branch).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, zero_init: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(_uniform((out_features, in_features), in_features, zero_init))
        self.bias = Parameter(_uniform((out_features,), in_features, zero_init)) if bias else None
        self.compute_dtype: Optional[ms.Type] = None

    def construct(self, x: Tensor) -> Tensor:
        """(…, i) -> (…, o)."""
        x, weight = in_type(self.compute_dtype, x, self.weight)
        return operators.current.linear(x, weight, self.bias)

    def gated(self, x: Tensor) -> Tensor:
        """h · gelu(g), h and g the halves of the result: (…, i) -> (…, o/2)."""
        x, weight = in_type(self.compute_dtype, x, self.weight)
        return operators.current.geglu(x, weight, self.bias)


class PointwiseConv(Linear):
    """A 1x1 convolution over pixels that are tokens, (b, n, c): a linear layer whose weight is (o, i, 1, 1)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, zero_init: bool = False) -> None:
        super().__init__(in_features, out_features, bias, zero_init)
        shape = (out_features, in_features, 1, 1)
        self.weight = Parameter(_uniform(shape, in_features, zero_init))

    def construct(self, x: Tensor) -> Tensor:
        """(b, n, i) -> (b, n, o)."""
        x, weight = in_type(self.compute_dtype, x, self.weight)
        return operators.current.linear(x, operators.current.late(weight, weight.shape[:2], x), self.bias)


def in_type(dtype: Optional[ms.Type], x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
    """Both in the type to compute in; None leaves them as they are."""
    return (x, weight) if dtype is None else (x.astype(dtype), weight.astype(dtype))


class Conv2d(nn.Cell):
    """A square 2-D convolution over (b, c, h, w).

    Args:
        padding: zeros on each side: one number, or (top, bottom, left, right).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Union[int, Tuple[int, int, int, int]] = 0,
        bias: bool = True,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        fan_in = in_channels * kernel_size**2
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = Parameter(_uniform(shape, fan_in, zero_init))
        self.bias = Parameter(_uniform((out_channels,), fan_in, zero_init)) if bias else None
        self.compute_dtype: Optional[ms.Type] = None
        self.stride = stride
        self.padding = padding if isinstance(padding, tuple) else (padding, padding, padding, padding)
        self.direct = ops.Conv2D(out_channels, kernel_size, pad_mode="pad", pad=padding, stride=stride)

    def construct(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c', h', w')."""
        x, weight = in_type(self.compute_dtype, x, self.weight)
        return operators.current.conv2d(self.direct, x, weight, self.bias, self.stride, self.padding)


class UpsamplingConv(Conv2d):
    """A 3x3 convolution, one pixel of zero padding, over the picture of twice the height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def construct(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', 2h, 2w)."""
        x, weight = in_type(self.compute_dtype, x, self.weight)
        return operators.current.conv2d_doubled(self.direct, x, weight, self.bias)


class TemporalConv(nn.Cell):
    """A (3, 1, 1) convolution over time, computed as a (3, 1) convolution over (b, c, t, h·w).

    The weight keeps the published 5-D shape (o, i, 3, 1, 1). Padding is one zero frame at each end.
    """

    def __init__(self, in_channels: int, out_channels: int, zero_init: bool = False) -> None:
        super().__init__()
        self.weight = Parameter(_uniform((out_channels, in_channels, 3, 1, 1), in_channels * 3, zero_init))
        self.bias = Parameter(_uniform((out_channels,), in_channels * 3, zero_init))
        self.compute_dtype: Optional[ms.Type] = None
        self.direct = ops.Conv2D(out_channels, (3, 1), pad_mode="pad", pad=(1, 1, 0, 0))

    def construct(self, x: Tensor) -> Tensor:
        """(b, c, t, n) -> (b, c', t, n)."""
        x, weight = in_type(self.compute_dtype, x, self.weight)
        return operators.current.conv_over_time(self.direct, x, weight, self.bias)


def set_identity(conv: nn.Cell) -> None:
    """Makes a convolution of as many channels in as out, of any odd kernel, start as the identity."""
    weight = np.zeros(conv.weight.shape, np.float32)
    channels = np.arange(weight.shape[0])
    weight[(channels, channels, *(size // 2 for size in weight.shape[2:]))] = 1.0
    conv.weight = Parameter(Tensor(weight))
    conv.bias = Parameter(Tensor(np.zeros(weight.shape[:1], np.float32)))


class GroupNorm(nn.Cell):
    """Group normalisation over axis 1 of (b, c, …), in fp32, returned in the input's type."""

    def __init__(self, num_channels: int, eps: float = 1e-5, num_groups: int = GROUPS) -> None:
        super().__init__()
        self.num_groups, self.eps = num_groups, eps
        self.weight = Parameter(initializer("ones", (num_channels,), ms.float32))
        self.bias = Parameter(initializer("zeros", (num_channels,), ms.float32))

    def construct(self, x: Tensor) -> Tensor:
        """Any shape with axes 0 and 1."""
        return operators.current.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def set_norm_groups(net: nn.Cell, num_groups: int) -> None:
    """Sets the number of groups of every GroupNorm in a network.

    Raises:
        UserError: it does not divide the width of one of them.
    """
    for name, cell in net.cells_and_names():
        if isinstance(cell, GroupNorm):
            width = cell.weight.shape[0]
            if num_groups < 1 or width % num_groups:
                raise UserError(f"num_groups={num_groups} does not divide the {width} channels of {name}")
            cell.num_groups = num_groups


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis, in fp32, returned in the input's type."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(initializer("ones", (num_features,), ms.float32))
        self.bias = Parameter(initializer("zeros", (num_features,), ms.float32))
        self.eps = eps

    def construct(self, x: Tensor) -> Tensor:
        """(…, c) -> (…, c)."""
        return operators.current.layer_norm(x, self.weight, self.bias, self.eps)


class SiLU(nn.Cell):
    """x·sigmoid(x), in fp32, returned in the input's type (fp16's is imprecise)."""

    def construct(self, x: Tensor) -> Tensor:
        """Any shape."""
        return operators.current.silu(x)


class GEGLU(nn.Cell):
    """The gated linear unit h · gelu(g) with (h, g) = proj(x) (Shazeer 2020)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.proj = Linear(in_features, out_features * 2)

    def construct(self, x: Tensor) -> Tensor:
        """(…, i) -> (…, o)."""
        return self.proj.gated(x)


class FeedForward(nn.Cell):
    """GEGLU to four times the width, and back.

    Args:
        zero_init: start as the zero map.
    """

    def __init__(self, features: int, mult: int = 4, zero_init: bool = False) -> None:
        super().__init__()
        inner = features * mult
        # Index 1 is the reference's dropout: the published names count it.
        self.net = nn.CellList([GEGLU(features, inner), nn.Identity(), Linear(inner, features, zero_init=zero_init)])
        self.features = features
        self.row_bytes = 2 * inner * 4  # of the widest activation, in fp32

    def construct(self, x: Tensor) -> Tensor:
        """(…, c) -> (…, c)."""
        rows = operators.current.reshape(x, (-1, self.features))
        return operators.current.reshape(operators.current.by_rows(self.tokens, rows, self.row_bytes), x.shape)

    def tokens(self, x: Tensor) -> Tensor:
        """(n, c) -> (n, c)."""
        return self.net[2](self.net[0](x))


def sinusoidal_embedding(positions: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """cos and sin of `positions` at `dim`/2 frequencies falling geometrically from 1 to 1/max_period.

    Source: Vaswani et al. 2017, in the order of DDPM's code (cosines first).

    Args:
        positions: (n,), any real numbers.
        dim: an even number.

    Returns:
        (n, dim), fp32.
    """
    half = dim // 2
    frequencies = ops.exp(indices(half) * (-math.log(max_period) / half))
    angles = positions.astype(ms.float32).reshape(-1, 1) * frequencies.reshape(1, -1)  # n half
    return ops.cat((ops.cos(angles), ops.sin(angles)), axis=-1)


@ops.constexpr
def indices(count: int) -> Tensor:
    """0, 1, … as a constant of the graph: (count,), fp32."""
    return Tensor(np.arange(count, dtype=np.float32))


def timestep_mlp(in_features: int, hidden: int, out_features: int) -> nn.SequentialCell:
    """The two-layer SiLU network behind every sinusoidal embedding."""
    return nn.SequentialCell(Linear(in_features, hidden), SiLU(), Linear(hidden, out_features))


def to_tokens(x: Tensor) -> Tensor:
    """n c h w -> n (h w) c."""
    n, c, h, w = x.shape
    return operators.current.permute(operators.current.reshape(x, (n, c, h * w)), (0, 2, 1))


def from_tokens(x: Tensor, height: int, width: int) -> Tensor:
    """n (h w) c -> n c h w."""
    n, _, c = x.shape
    return operators.current.reshape(operators.current.permute(x, (0, 2, 1)), (n, c, height, width))
