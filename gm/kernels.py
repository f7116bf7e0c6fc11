"""The operators whose fastest exact form depends on the device: this module is the one door to such choices.

On Ascend the fused operators are used. On CPU, MindSpore's GroupNorm takes three times as long as the same sum written
as matrix products; and broadcasting Add and Mul keep index buffers larger than their output in graph mode, so operands
are broadcast explicitly.
"""

import mindspore as ms
from mindspore import Tensor, mint, ops

_BATCH_NORM_EPS = 1e-5
_BIAS_ADD = ops.BiasAdd()
_BATCH_NORM = ops.BatchNorm(is_training=False, epsilon=_BATCH_NORM_EPS)

SQRT_HALF = 0.7071067811865476


def fused_kernels() -> bool:
    """Whether the device has fused norms and attention (Ascend)."""
    return ms.get_context("device_target") == "Ascend"


def add_broadcast(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`, with y broadcast to x's shape."""
    return x + ops.broadcast_to(y, x.shape)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x * scale + shift` with one scale and one shift per row, in one pass.

    It is batch normalisation at inference with mean 0 and variance 1 - ε, whose kernel is three times as fast as a
    broadcast product and sum.

    Args:
        x: (n, …).
        scale, shift: (n,).
    """
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
    c = x.shape[-1]
    rows = x.reshape(-1, c)
    average = ops.full((c, 1), 1.0 / c, dtype=x.dtype)
    mean = ops.matmul(rows, average)  # n 1
    variance = ops.matmul(rows * rows, average) - mean * mean
    rstd = ops.rsqrt(variance + eps)
    normed = scale_shift(rows, rstd.reshape(-1), (-mean * rstd).reshape(-1))
    return _BIAS_ADD(normed * weight, bias).reshape(x.shape)


def gelu(x: Tensor) -> Tensor:
    """The exact Gaussian error linear unit, x·Φ(x)."""
    return x * (ops.erf(x * SQRT_HALF) * 0.5 + 0.5)


def swap_axes(x: Tensor, first: int, second: int) -> Tensor:
    """Two axes of `x` exchanged (a copy)."""
    order = list(range(x.ndim))
    order[first], order[second] = second, first
    return mint.permute(x, tuple(order))
