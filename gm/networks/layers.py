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

from gm.backend import graph_loops, shared_memory, temporal_filter
from gm.backend import operators as kernels
from gm.backend.small_conv import SmallConv
from gm.backend.winograd import WinogradConv, worthwhile
from gm.errors import UserError

GROUPS = 32  # of every GroupNorm in SVD; small networks need fewer, to keep several channels in each
FEED_FORWARD_BUDGET = 1 << 28  # bytes of a feed-forward's widest activation


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
        return self.with_bias(self.product(x), self.bias, x)

    def with_bias(self, y: Tensor, bias: Optional[Tensor], x: Tensor) -> Tensor:
        """`y + bias` in the shape of `x`, but for the last axis; the bias may be None."""
        if bias is not None:
            y = kernels.add_bias(y, bias.astype(y.dtype))
        return kernels.reshape(y, x.shape[:-1] + (y.shape[-1],))

    def product(self, x: Tensor) -> Tensor:
        """`x @ weightᵀ`, (…, i) -> (n, o)."""
        return self.product_with(self.weight, x)

    def product_with(self, weight: Tensor, x: Tensor) -> Tensor:
        if self.compute_dtype is None:
            return kernels.product(x, weight)
        return kernels.product(x.astype(self.compute_dtype), weight.astype(self.compute_dtype))

    def halves(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """The first and the second half of the result's features, (…, i) -> two of (…, o/2).

        Where results are fused with what follows, it is the weights that are divided.
        """
        if not graph_loops.active or self.bias is None:
            return ops.chunk(self.construct(x), 2, axis=-1)
        weights, biases = ops.chunk(self.weight, 2, axis=0), ops.chunk(self.bias, 2, axis=0)
        first = self.with_bias(self.product_with(weights[0], x), biases[0], x)
        return first, self.with_bias(self.product_with(weights[1], x), biases[1], x)


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
        self.conv = ops.Conv2D(out_channels, kernel_size, pad_mode="pad", pad=padding, stride=stride)
        rewritten = padding == kernel_size // 2 and not kernels.has_fused_operators()
        self.small_conv = SmallConv(kernel_size, stride) if rewritten else None
        self.winograd = WinogradConv() if rewritten and (kernel_size, stride) == (3, 1) else None

    def construct(self, x: Tensor) -> Tensor:
        x, weight = self.in_compute_type(x)
        return self.add_bias(self.convolve(x, weight))

    def in_compute_type(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """The input and the weight."""
        if self.compute_dtype is None:
            return x, self.weight
        return x.astype(self.compute_dtype), self.weight.astype(self.compute_dtype)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.winograd is not None and graph_loops.take_filter(x, weight):
            return graph_loops.filter_by_tiles(x, weight)
        if self.small_conv is not None and self.small_conv.takes(x.shape):
            return self.small_conv(x, weight)
        if self.by_tiles(x.shape, x.dtype):
            return self.winograd(x, weight)
        return self.conv(x, weight)

    def by_tiles(self, shape: Tuple[int, ...], dtype: ms.Type) -> bool:
        """Whether a picture of that shape is convolved by tiles."""
        possible = self.winograd is not None and dtype == ms.float32 and kernels.filters_minimally()
        return possible and worthwhile(shape, self.weight.shape)

    def add_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else kernels.add_bias(y, self.bias.astype(y.dtype))


class TemporalConv(nn.Cell):
    """A (3, 1, 1) convolution over time, computed as a (3, 1) convolution over (b, c, t, h·w).

    The weight keeps the published 5-D shape (o, i, 3, 1, 1). Padding is one zero frame at each end.
    """

    def __init__(self, in_channels: int, out_channels: int, zero_init: bool = False) -> None:
        super().__init__()
        self.weight = Parameter(_uniform((out_channels, in_channels, 3, 1, 1), in_channels * 3, zero_init))
        self.bias = Parameter(_uniform((out_channels,), in_channels * 3, zero_init))
        self.compute_dtype: Optional[ms.Type] = None
        self.conv = ops.Conv2D(out_channels, (3, 1), pad_mode="pad", pad=(1, 1, 0, 0))

    def construct(self, x: Tensor) -> Tensor:
        weight = kernels.reshape_late(self.weight, self.weight.shape[:4], x)  # o i 3 1 1 -> o i 3 1
        if self.compute_dtype is not None:
            x, weight = x.astype(self.compute_dtype), weight.astype(self.compute_dtype)
        if kernels.loops_take(x) and temporal_filter.worthwhile(x.shape, weight.shape):
            y = temporal_filter.convolve(x, weight)
        elif graph_loops.take_filter(x, weight):
            y = graph_loops.filter_over_time(x, weight)
        else:
            y = self.conv(x, weight)
        return kernels.add_bias(y, self.bias.astype(y.dtype))


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
        self.fused = kernels.has_fused_operators()

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.astype(ms.float32), self.bias.astype(ms.float32)
        x32 = x.astype(ms.float32)
        if self.fused:
            y = ops.group_norm(x32, self.num_groups, weight, bias, self.eps)
        else:
            y = kernels.group_norm(x32, self.num_groups, weight, bias, self.eps)
        return y.astype(x.dtype)


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
        self.fused = kernels.has_fused_operators()
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.astype(ms.float32), self.bias.astype(ms.float32)
        x32 = x.astype(ms.float32)
        if self.fused:
            return self.norm(x32, weight, bias)[0].astype(x.dtype)
        return kernels.layer_norm(x32, weight, bias, self.eps).astype(x.dtype)


class SiLU(nn.Cell):
    """x·sigmoid(x), in fp32, returned in the input's type (fp16's is slow on CPU and imprecise everywhere)."""

    def construct(self, x: Tensor) -> Tensor:
        return kernels.silu(x.astype(ms.float32)).astype(x.dtype)


class GEGLU(nn.Cell):
    """The gated linear unit h · gelu(g) with (h, g) = proj(x) (Shazeer 2020)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.proj = Linear(in_features, out_features * 2)
        self.gelu = kernels.GELU()

    def construct(self, x: Tensor) -> Tensor:
        if kernels.loops_take(x) and self.proj.compute_dtype is None:
            return kernels.reshape(shared_memory.geglu(self.proj.product(x), self.proj.bias), x.shape[:-1] + (-1,))
        hidden, gate = self.proj.halves(x)
        return hidden * self.gelu(gate)


class FeedForward(nn.Cell):
    """GEGLU to four times the width, and back; in blocks of tokens where it would take too much memory at once.

    Args:
        zero_init: start as the zero map.
        budget: bytes of the widest activation that is held at once.
    """

    def __init__(
        self, features: int, mult: int = 4, zero_init: bool = False, budget: int = FEED_FORWARD_BUDGET
    ) -> None:
        super().__init__()
        inner = features * mult
        # Index 1 is the reference's dropout: the published names count it.
        self.net = nn.CellList([GEGLU(features, inner), nn.Identity(), Linear(inner, features, zero_init=zero_init)])
        self.features = features
        self.most_rows = max(1, budget // (2 * inner * 4))

    def construct(self, x: Tensor) -> Tensor:
        rows = kernels.reshape(x, (-1, self.features))
        count, size = rows.shape[0], self.most_rows
        if count <= size:
            return self.net[2](self.net[0](x))
        blocks = []
        for first in range(0, count, size):
            blocks.append(self.net[2](self.net[0](rows[first : min(first + size, count)])))
        return ops.cat(blocks, axis=0).reshape(x.shape)


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
    frequencies = ops.exp(ops.arange(half).astype(ms.float32) * (-math.log(max_period) / half))
    angles = positions.astype(ms.float32).reshape(-1, 1) * frequencies.reshape(1, -1)  # n half
    return ops.cat((ops.cos(angles), ops.sin(angles)), axis=-1)


def timestep_mlp(in_features: int, hidden: int, out_features: int) -> nn.SequentialCell:
    """The two-layer SiLU network behind every sinusoidal embedding."""
    return nn.SequentialCell(Linear(in_features, hidden), SiLU(), Linear(hidden, out_features))

def to_tokens(x: Tensor) -> Tensor:
    """n c h w -> n (h w) c."""
    n, c, h, w = x.shape
    return kernels.swap_axes(kernels.reshape(x, (n, c, h * w)), 1, 2)


def from_tokens(x: Tensor, height: int, width: int) -> Tensor:
    """n (h w) c -> n c h w."""
    n, _, c = x.shape
    return kernels.reshape(kernels.swap_axes(x, 1, 2), (n, c, height, width))

def double_size(x: Tensor) -> Tensor:
    """Each pixel repeated twice in both directions: (n, c, h, w) -> (n, c, 2h, 2w)."""
    n, c, h, w = x.shape
    x = ops.broadcast_to(x.reshape(n * c, h, 1, w, 1), (n * c, h, 2, w, 2))
    return x.reshape(n, c, 2 * h, 2 * w)


class UpsamplingConv(Conv2d):
    """A 3x3 convolution, one pixel of zero padding, over the picture of twice the height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        if self.winograd is not None:
            self.winograd_doubled = WinogradConv(scale=2)

    def construct(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', 2h, 2w)."""
        x, weight = self.in_compute_type(x)
        n, c, h, w = x.shape
        if self.by_tiles((n, c, 2 * h, 2 * w), x.dtype):
            return self.add_bias(self.winograd_doubled(x, weight))
        return self.add_bias(self.convolve(double_size(x), weight))
