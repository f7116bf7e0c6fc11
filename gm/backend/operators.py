"""The operators whose fastest exact form depends on the device: this module is the one door to such choices.

On Ascend the fused operators are used. On CPU, MindSpore's GroupNorm takes three times as long as the same sum written
as matrix products; and broadcasting Add and Mul keep index buffers larger than their output in graph mode, so operands
are broadcast explicitly. In PyNative mode without gradients, operators are loops of our own where that is faster
(:mod:`gm.backend.shared_memory`).
"""

from typing import Any, Callable, Sequence, Tuple

import mindspore as ms
from mindspore import Tensor, mint, nn, ops

from gm.backend import graph_loops, shared_memory
from gm.backend.kernels.activations import LOGIT_OF_CDF

_BATCH_NORM_EPS = 1e-5
_BIAS_ADD = ops.BiasAdd()
_PRODUCT = ops.MatMul(transpose_b=True)
_BATCH_NORM = ops.BatchNorm(is_training=False, epsilon=_BATCH_NORM_EPS)

fusing = False  # whether networks are being compiled to fused kernels, see gm.backend.kernel_fusion
fusing_norms = False  # and these too
sharing = False  # whether operators run one by one, without gradients, on CPU: see gm.backend.runtime.eager

SQRT_HALF = 0.7071067811865476
INVERSE_SQRT_2PI = 0.3989422804014327


def has_fused_operators() -> bool:
    """Whether the device has fused norms and attention (Ascend)."""
    return ms.get_context("device_target") == "Ascend"


def loops_take(x: Tensor) -> bool:
    """Whether an operator on `x` is a loop of :mod:`gm.backend.shared_memory`."""
    return sharing and x.dtype == ms.float32


def constant(method: Callable, *inputs: Any) -> Any:
    """`method(*inputs)` for what stays as it is from step to step: inside :func:`gm.backend.runtime.eager` on CPU it is
    computed once.

    Args:
        method: of an object whose parameters do not change meanwhile.
        inputs: numbers, by their value, and tensors, by their identity.
    """
    return shared_memory.remembered(method, *inputs) if sharing else method(*inputs)


def add_broadcast(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`, with y broadcast to x's shape."""
    if loops_take(x) and y.dtype == x.dtype:
        return shared_memory.add_broadcast(x, y)
    return x + (y if fusing else ops.broadcast_to(y, x.shape))


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x * scale + shift` with one scale and one shift per row, in one pass.

    Unfused it is batch normalisation at inference with mean 0 and variance 1 - ε, whose kernel is three times as fast
    as a broadcast product and sum.

    Args:
        x: (n, …).
        scale, shift: (n,).
    """
    if fusing_norms:
        return x * scale.reshape(-1, 1) + shift.reshape(-1, 1)
    n = x.shape[0]
    mean = ops.zeros((n,), dtype=x.dtype)
    variance = ops.full((n,), 1 - _BATCH_NORM_EPS, dtype=x.dtype)
    return _BATCH_NORM(x.reshape(1, n, -1, 1), scale, shift, mean, variance)[0].reshape(x.shape)


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation (Wu & He 2018) as one scale and one shift per channel.

    The statistics are products with a constant vector: E[x] and E[x²].

    Args:
        x: (b, c, …), fp32.
        weight, bias: (c,).
    """
    if sharing:
        return shared_memory.group_norm(x, num_groups, weight, bias, eps)
    b, c = x.shape[:2]
    rows = x.reshape(b * num_groups, -1)  # b c … -> (b g) n
    average = ops.full((rows.shape[1], 1), 1.0 / rows.shape[1], dtype=x.dtype)
    mean = ops.matmul(rows, average)  # (b g) 1
    variance = ops.matmul(rows * rows, average) - mean * mean
    rstd = ops.rsqrt(variance + eps)
    scale = rstd.reshape(b, num_groups, 1) * weight.reshape(1, num_groups, -1)  # b g c/g
    shift = bias.reshape(1, num_groups, -1) - mean.reshape(b, num_groups, 1) * scale
    return scale_shift(x.reshape(b * c, -1), scale.reshape(-1), shift.reshape(-1)).reshape(x.shape)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last axis (Ba et al. 2016), with statistics as in :func:`group_norm`.

    Args:
        x: (…, c), fp32.
        weight, bias: (c,).
    """
    if sharing:
        return shared_memory.layer_norm(x, weight, bias, eps)
    c = x.shape[-1]
    rows = x.reshape(-1, c)
    average = ops.full((c, 1), 1.0 / c, dtype=x.dtype)
    mean = ops.matmul(rows, average)  # n 1
    variance = ops.matmul(rows * rows, average) - mean * mean
    rstd = ops.rsqrt(variance + eps)
    normed = scale_shift(rows, rstd.reshape(-1), (-mean * rstd).reshape(-1))
    return add_bias(normed * weight, bias).reshape(x.shape)


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """Adds one number to each place of axis 1; `y`, which nobody else needs, may be changed.

    Args:
        y: (n, c, …).
        bias: (c,), of the same type.
    """
    if loops_take(y):
        return shared_memory.add_bias(y, bias)
    return graph_loops.add_bias(y, bias) if graph_loops.take_bias(y) else _BIAS_ADD(y, bias)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ with the axes of `x` before the last one merged: (…, i), (o, i) -> (n, o)."""
    if loops_take(x):
        return shared_memory.product(x, weight)
    return _PRODUCT(reshape(x, (-1, x.shape[-1])), weight)


def add_scaled(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """`x + scale * y` for a number; `y`, which nobody else needs, may be changed.

    Args:
        scale: shape (), fp32.
    """
    return shared_memory.add_scaled(x, y, scale) if loops_take(y) else x + y * scale.astype(y.dtype)


def mix(x: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """`share * x + (1 - share) * y` for a number; `y`, which nobody else needs, may be changed.

    Args:
        share: shape (), fp32.
    """
    return shared_memory.mix(x, y, share) if loops_take(y) else y + share.astype(y.dtype) * (x - y)


def silu(x: Tensor) -> Tensor:
    """x·sigmoid(x), fp32."""
    return shared_memory.silu(x) if sharing else ops.silu(x)


class GELU(nn.Cell):
    """The exact Gaussian error linear unit, x·Φ(x) (Hendrycks & Gimpel 2016).

    Its derivative, Φ(x) + x·φ(x), is written out, so that training keeps nothing but x.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused = has_fused_operators()

    def construct(self, x: Tensor) -> Tensor:
        """Any shape."""
        return shared_memory.gelu(x) if loops_take(x) else x * self.cdf(x)

    def cdf(self, x: Tensor) -> Tensor:
        """Φ(x), in fp32, returned in the input's type."""
        x32 = x.astype(ms.float32)
        phi = ops.erf(x32 * SQRT_HALF) * 0.5 + 0.5 if self.fused else normal_cdf(x32)
        return phi.astype(x.dtype)

    def bprop(self, x, out, dout):
        """The gradient of `x` from that of the result."""
        x32 = x.astype(ms.float32)
        density = ops.exp(x32 * x32 * -0.5) * INVERSE_SQRT_2PI
        return (dout * (self.cdf(x) + (x32 * density).astype(x.dtype)),)


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x), the standard normal distribution function, as sigmoid(x·q(x²)), q a polynomial fitted to the logit of Φ.

    The error of x·Φ(x) is below 1e-6·max(1, |x|), fp32's rounding included; half the time of MindSpore's Erf on CPU.

    Args:
        x: fp32.
    """
    square = x * x
    q = LOGIT_OF_CDF[0]
    for coefficient in LOGIT_OF_CDF[1:]:
        q = q * square + coefficient
    return ops.sigmoid(q * x)


def filters_minimally() -> bool:
    """Whether 3x3 convolutions may be computed by :mod:`gm.backend.winograd`: on CPU, without gradients, and where it
    pays, which it does not operator by operator with views that are copied."""
    return fusing_norms or sharing


def reshape(x: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """`x.reshape(shape)`, not copied.

    In PyNative mode MindSpore makes a view, and every operator that is given a view copies it first: ReLU takes twice
    as long, a product of two views four times. There the same memory is given its other shape by NumPy.
    """
    return shared_memory.reshape(x, shape) if sharing else x.reshape(shape)


def part(x: Tensor, first: int, count: int) -> Tensor:
    """`x[first:first + count]`, up to the last row; a slice of all rows would be a copy."""
    return x if count >= x.shape[0] else x[first : min(first + count, x.shape[0])]


def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """The parts one after another along an axis; one alone is not copied."""
    return parts[0] if len(parts) == 1 else ops.cat(parts, axis=axis)


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, row_bytes: int) -> Tensor:
    """`function(x)` for one that treats each row of axis 0 by itself: some rows at a time, so that whatever it needs on
    the way is needed for these only. All at once where memory is not shared.

    Args:
        function: fp32, (n, …) -> (n, …), for any n.
        row_bytes: of what is large on the way, for one row.
    """
    return shared_memory.in_blocks(function, x, row_bytes) if loops_take(x) else function(x)


def rows_between(x: Tensor, first: int, last: int) -> Tensor:
    """`x[:, :, first:last]`; a slice of all rows would be a copy."""
    return x if first == 0 and last == x.shape[2] else x[:, :, first:last]


def reshape_late(weight: Tensor, shape: Tuple[int, ...], x: Tensor) -> Tensor:
    """`weight.reshape(shape)`, not before `x` is there.

    A compiled network reshapes (that is, copies) all weights before anything else, and holds the copies until they are
    used: 1.6 GB at full size.
    """
    return shared_memory.reshape(weight, shape) if sharing else ops.depend(weight, x).reshape(shape)


def swap_axes(x: Tensor, first: int, second: int) -> Tensor:
    """Two axes of `x` exchanged (a copy); `first` comes before `second`.

    As a fused kernel, a transposition takes no memory but its result's and a fourth of the time of a strided view and
    its copy. Unfused, its operator would keep twice its result's memory for as long as the network lives.
    """
    order = list(range(x.ndim))
    order[first], order[second] = second, first
    if fusing:
        return ops.transpose(x, tuple(order))
    if sharing and second < x.ndim - 1:
        return shared_memory.gather_rows(x, tuple(order))
    if loops_take(x) and first == x.ndim - 2:
        return shared_memory.swap_last(x)
    return mint.permute(x, tuple(order))


def rows_permuted(x: Tensor, order: Tuple[int, ...]) -> Tensor:
    """The axes of `x` in another order (a copy), of which the last axis stays the last."""
    return shared_memory.gather_rows(x, order) if sharing else ops.transpose(x, order)
