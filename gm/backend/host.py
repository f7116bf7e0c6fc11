"""Operators on a CPU without gradients: compiled, or one by one as kernels over memory that MindSpore and NumPy share.

In PyNative mode MindSpore 2.8 copies a view each time an operator reads it, keeps every intermediate result of a chain
of operators, and has no kernel for some of them. :class:`HostOperators` gives the same memory another shape by NumPy,
and makes a chain one kernel (:mod:`gm.backend.kernels`). Should MindSpore copy where it shares today, results stay
right.
"""

from functools import lru_cache
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops

from gm.backend import operators, winograd
from gm.backend.kernels import activations, layout, norms, sums
from gm.backend.kernels.activations import LOGIT_OF_CDF
from gm.backend.kernels.threads import parallel_for
from gm.backend.operators import NO_PADDING, Operators, Padding, same_padding
from gm.backend.zero_copy import array_of, empty, reshape

ROWS_BYTES = 1 << 28  # that the rows which are worked on at once may need
MANY_ROWS, SOME_ROWS = 4096, 400  # from which on MindSpore's product is the faster one; from the second on if it widens
LARGEST_SMALL = 3  # pixels, in height and width, of the results of convolutions that are matrix products
BATCH_NORM_EPS = 1e-5
INVERSE_SQRT_2PI = 0.3989422804014327

_MATMUL_T, _MATMUL = ops.MatMul(transpose_b=True), ops.MatMul()
_BATCH_NORM = ops.BatchNorm(is_training=False, epsilon=BATCH_NORM_EPS)


@ms.jit_class
class CompiledOperators(Operators):
    """MindSpore's operators in the forms that a CPU computes fastest, in graph mode and with gradients.

    MindSpore's GroupNorm takes three times as long as the same sum written as matrix products; its GELU and its
    broadcasting Add keep index buffers larger than their results.

    Args:
        fused: whether graphs are compiled to fused kernels (:mod:`gm.backend.kernel_fusion`).
    """

    def __init__(self, fused: bool = False) -> None:
        self.fused = fused
        self.gelu_cell = GELU()
        self.small_3_1, self.small_3_2 = SmallConv(3, 1), SmallConv(3, 2)
        self.small_1_1, self.small_1_2 = SmallConv(1, 1), SmallConv(1, 2)

    def conv2d(
        self,
        direct: ops.Conv2D,
        x: Tensor,
        weight: Tensor,
        bias: Optional[Tensor],
        stride: int = 1,
        padding: Padding = NO_PADDING,
    ) -> Tensor:
        """See :meth:`Operators.conv2d`; `super()` is not called, because a graph knows one level of it only."""
        kernel_size = weight.shape[3]
        large = max(x.shape[2:]) > LARGEST_SMALL * stride
        if padding != same_padding(kernel_size) or large or stride > 2 or kernel_size not in (1, 3):
            return self.add_bias(direct(x, weight), bias)
        if kernel_size == 3:
            small = self.small_3_1 if stride == 1 else self.small_3_2
        else:
            small = self.small_1_1 if stride == 1 else self.small_1_2
        return self.add_bias(small(x, weight), bias)

    def group_norm(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See :meth:`Operators.group_norm`: one scale and one shift per channel, the means products with a constant."""
        b, c = x.shape[:2]
        x32 = x.astype(ms.float32)
        mean, rstd = row_statistics(x32.reshape(b * groups, -1), eps)  # b c … -> (b g) n
        scale = rstd.reshape(b, groups, 1) * weight.astype(ms.float32).reshape(1, groups, -1)  # b g c/g
        shift = bias.astype(ms.float32).reshape(1, groups, -1) - mean.reshape(b, groups, 1) * scale
        return scale_shift(x32.reshape(b * c, -1), scale, shift).reshape(x.shape).astype(x.dtype)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See :meth:`Operators.layer_norm`; the statistics as in :meth:`group_norm`."""
        rows = x.astype(ms.float32).reshape(-1, x.shape[-1])
        mean, rstd = row_statistics(rows, eps)
        normed = scale_shift(rows, rstd, -mean * rstd) * weight.astype(ms.float32)
        return self.add_bias(normed, bias.astype(ms.float32)).reshape(x.shape).astype(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """See :meth:`Operators.gelu`."""
        return self.gelu_cell(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """See :meth:`Operators.add`."""
        return x + (y if self.fused else ops.broadcast_to(y, x.shape))

    def permute(self, x: Tensor, order: Tuple[int, ...]) -> Tensor:
        """See :meth:`Operators.permute`.

        As a fused kernel it takes no memory but its result's. Unfused, the operator would keep twice its result's
        memory for as long as the network lives; a view and its copy do not.
        """
        return ops.transpose(x, order) if self.fused else mint.permute(x, order)


def row_statistics(rows: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """The mean and 1/√(variance + eps) of each row, from E[x] and E[x²]: (n, m), fp32 -> (n, 1) twice."""
    average = ops.full((rows.shape[1], 1), 1.0 / rows.shape[1], dtype=rows.dtype)
    mean = ops.matmul(rows, average)
    variance = ops.matmul(rows * rows, average) - mean * mean
    return mean, ops.rsqrt(variance + eps)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x·scale + shift` in one pass: (n, m), fp32, with n scales and n shifts in any shape.

    It is batch normalisation at inference with mean 0 and variance 1 - ε, whose kernel is three times as fast as a
    broadcast product and sum.
    """
    n = x.shape[0]
    mean, variance = ops.zeros((n,), dtype=x.dtype), ops.full((n,), 1 - BATCH_NORM_EPS, dtype=x.dtype)
    return _BATCH_NORM(x.reshape(1, n, -1, 1), scale.reshape(-1), shift.reshape(-1), mean, variance)[0].reshape(x.shape)


class GELU(nn.Cell):
    """x·Φ(x); its derivative, Φ(x) + x·φ(x), is written out, so that training keeps nothing but x."""

    def construct(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * self.cdf(x)

    def cdf(self, x: Tensor) -> Tensor:
        """Φ(x), returned in the input's type, as sigmoid(x·q(x²)), q a polynomial fitted to the logit of Φ.

        The error of x·Φ(x) is below 1e-6·max(1, |x|), fp32's rounding included; half the time of MindSpore's Erf.
        """
        x32 = x.astype(ms.float32)
        square = x32 * x32
        q = LOGIT_OF_CDF[0]
        for coefficient in LOGIT_OF_CDF[1:]:
            q = q * square + coefficient
        return ops.sigmoid(q * x32).astype(x.dtype)

    def bprop(self, x, out, dout):
        """The gradient of `x` from that of the result."""
        x32 = x.astype(ms.float32)
        density = ops.exp(x32 * x32 * -0.5) * INVERSE_SQRT_2PI
        return (dout * (self.cdf(x) + (x32 * density).astype(x.dtype)),)


class SmallConv(nn.Cell):
    """A convolution for results of at most 3x3 pixels as a matrix product, with kernel_size // 2 pixels of padding.

    For them MindSpore's convolution mostly rearranges its weights. The neighbourhoods of all pixels are gathered by a
    product with a matrix of zeros and ones, which is exact, and multiplied by the weights as they lie in memory: over
    1280 channels a third of the time at 2x2 pixels, two thirds at 3x3, and with a stride of 2 to 2x2 a fourth.

    Args:
        kernel_size: odd.
        stride: 1 or 2.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.taps, self.stride = kernel_size**2, stride
        self.gather = neighbourhoods(kernel_size, stride)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: (n, i, h, w); weight: (o, i, k, k), of the same type -> (n, o, h/stride, w/stride), rounded up."""
        door = operators.current
        n, c, h, w = x.shape
        down, across = -(-h // self.stride), -(-w // self.stride)
        columns = x
        if self.taps > 1 or self.stride > 1:
            columns = _MATMUL(door.reshape(x, (n * c, h * w)), self.gather[h - 1][w - 1].astype(x.dtype))
        columns = ops.transpose(door.reshape(columns, (n, c * self.taps, down * across)), (1, 0, 2))
        columns = door.reshape(columns, (c * self.taps, n * down * across))  # (i k k) (n h w)
        weight = door.late(weight, (weight.shape[0], c * self.taps), columns)  # o i k k -> o (i k k)
        y = door.reshape(_MATMUL(weight, columns), (-1, n, down * across))  # o n (h w)
        return door.reshape(ops.transpose(y, (1, 0, 2)), (n, -1, down, across))


@lru_cache(maxsize=8)
def neighbourhoods(kernel_size: int, stride: int) -> Tuple[Tuple[Tensor, ...], ...]:
    """For every height and width of the input the matrix from its pixels to the neighbours of each pixel of the result:
    (h·w, taps·results), fp32."""
    sizes = range(1, LARGEST_SMALL * stride + 1)
    return tuple(
        tuple(Tensor(_neighbourhood(height, width, kernel_size, stride)) for width in sizes) for height in sizes
    )


def _neighbourhood(height: int, width: int, kernel_size: int, stride: int) -> np.ndarray:
    down, across, before = -(-height // stride), -(-width // stride), kernel_size // 2
    matrix = np.zeros((height, width, kernel_size, kernel_size, down, across), np.float32)  # pixel, tap, result
    for y, x in np.ndindex(down, across):
        for i, j in np.ndindex(kernel_size, kernel_size):
            row, column = y * stride + i - before, x * stride + j - before
            if 0 <= row < height and 0 <= column < width:
                matrix[row, column, i, j, y, x] = 1.0
    return matrix.reshape(height * width, -1)


class HostOperators(CompiledOperators):
    """Kernels over shared memory, operator by operator, without gradients; what is not fp32 is left to the parent."""

    def __init__(self) -> None:
        super().__init__()
        self._memo: Dict[Tuple, Tuple] = {}  # method and inputs -> result, and what the key names, to keep it alive

    def linear(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        """See :meth:`Operators.linear`: by whichever is faster for the shape, MindSpore or NumPy's BLAS."""
        if x.dtype != ms.float32:
            return super().linear(x, weight, bias)
        y = self.add_bias(self._product(x, weight), bias)
        return reshape(y, x.shape[:-1] + (weight.shape[0],))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        rows, inner, outputs = x.size // x.shape[-1], x.shape[-1], weight.shape[0]
        if rows >= MANY_ROWS or (rows >= SOME_ROWS and outputs > 2 * inner):
            return _MATMUL_T(reshape(x, (rows, inner)), weight)
        out = empty((rows, outputs))
        np.matmul(array_of(x).reshape(rows, inner), weight.asnumpy().T, out=out)
        return Tensor.from_numpy(out)

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`Operators.geglu`."""
        if x.dtype != ms.float32:
            return super().geglu(x, weight, bias)
        source = array_of(self._product(x, weight))
        out = empty((len(source), source.shape[1] // 2))
        parallel_for(activations.geglu, len(source), source.size, source, array_of(bias), out)
        return Tensor.from_numpy(out.reshape(x.shape[:-1] + (-1,)))

    def conv2d(
        self,
        direct: ops.Conv2D,
        x: Tensor,
        weight: Tensor,
        bias: Optional[Tensor],
        stride: int = 1,
        padding: Padding = NO_PADDING,
    ) -> Tensor:
        """See :meth:`Operators.conv2d`: by Winograd's minimal filtering where that pays."""
        square = weight.shape[3] == 3 and padding == same_padding(3) and stride == 1 and x.dtype == ms.float32
        if square and max(x.shape[2:]) > LARGEST_SMALL and winograd.pays(x.shape, weight.shape):
            return self.add_bias(winograd.conv2d(x, weight), bias)
        return super().conv2d(direct, x, weight, bias, stride, padding)

    def conv2d_doubled(self, direct: ops.Conv2D, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`Operators.conv2d_doubled`: the doubled picture is never made where Winograd's filtering pays."""
        n, c, h, w = x.shape
        if x.dtype == ms.float32 and winograd.pays((n, c, 2 * h, 2 * w), weight.shape):
            return self.add_bias(winograd.conv2d(x, weight, scale=2), bias)
        return super().conv2d_doubled(direct, x, weight, bias)

    def conv_over_time(self, direct: ops.Conv2D, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`Operators.conv_over_time`."""
        if x.dtype == ms.float32 and winograd.pays_over_time(x.shape, weight.shape):
            return self.add_bias(winograd.conv_over_time(x, weight), bias)
        return super().conv_over_time(direct, x, weight, bias)

    def add_bias(self, y: Tensor, bias: Optional[Tensor]) -> Tensor:
        """See :meth:`Operators.add_bias`: into the memory of y."""
        if bias is None or y.dtype != ms.float32:
            return super().add_bias(y, bias)
        values, shift = array_of(y), array_of(bias)
        if values.ndim == 2:
            parallel_for(sums.add_vector_in_place, len(values), values.size, values, shift)
        else:
            rows = values.reshape(values.shape[0] * values.shape[1], -1)
            parallel_for(sums.add_numbers_in_place, len(rows), rows.size, rows, shift)
        return Tensor.from_numpy(values)

    def group_norm(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See :meth:`Operators.group_norm`."""
        if x.dtype != ms.float32:
            return self.group_norm(x.astype(ms.float32), groups, weight, bias, eps).astype(x.dtype)
        b, c = x.shape[:2]
        source = array_of(x).reshape(b * groups, c // groups, -1)
        scale, shift = (_fp32(parameter).reshape(groups, -1) for parameter in (weight, bias))
        out = empty(source.shape)
        parallel_for(norms.group_norm, len(source), source.size, source, scale, shift, eps, out)
        return Tensor.from_numpy(out.reshape(x.shape))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See :meth:`Operators.layer_norm`."""
        if x.dtype != ms.float32:
            return self.layer_norm(x.astype(ms.float32), weight, bias, eps).astype(x.dtype)
        source = array_of(x).reshape(-1, x.shape[-1])
        out = empty(source.shape)
        parallel_for(norms.layer_norm, len(source), source.size, source, _fp32(weight), _fp32(bias), eps, out)
        return Tensor.from_numpy(out.reshape(x.shape))

    def silu(self, x: Tensor) -> Tensor:
        """See :meth:`Operators.silu`."""
        return self._elementwise(activations.silu, x.astype(ms.float32)).astype(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """See :meth:`Operators.gelu`."""
        return self._elementwise(activations.gelu, x.astype(ms.float32)).astype(x.dtype)

    def _elementwise(self, function: Callable, x: Tensor) -> Tensor:
        source, out = array_of(x).reshape(-1), empty((x.size,))
        parallel_for(function, source.size, source.size, source, out)
        return Tensor.from_numpy(out.reshape(x.shape))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """See :meth:`Operators.add`; y is of size 1 along axes at the end, or whole in the last."""
        if x.dtype != ms.float32 or y.dtype != x.dtype:
            return super().add(x, y)
        source, term = array_of(x), array_of(y)
        term = term.reshape((1,) * (source.ndim - term.ndim) + term.shape)
        out = empty(source.shape)
        if term.shape[-1] == source.shape[-1]:
            rows, vectors = source.reshape(-1, source.shape[-1]), term.reshape(-1, source.shape[-1])
            which = np.broadcast_to(np.arange(len(vectors)).reshape(term.shape[:-1]), source.shape[:-1]).reshape(-1)
            parallel_for(sums.add_vectors, len(rows), source.size, rows, vectors, which, out.reshape(rows.shape))
        else:
            kept = max(axis + 1 for axis, size in enumerate(term.shape) if size > 1 or axis == 0)
            numbers = np.broadcast_to(term.reshape(term.shape[:kept]), source.shape[:kept]).reshape(-1)
            rows = source.reshape(len(numbers), -1)
            parallel_for(sums.add_numbers, len(rows), source.size, rows, numbers, out.reshape(rows.shape))
        return Tensor.from_numpy(out)

    def add_scaled(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """See :meth:`Operators.add_scaled`: into the memory of y."""
        if y.dtype != ms.float32:
            return super().add_scaled(x, y, scale)
        return self._into_second(sums.add_to_scaled, x, y, scale)

    def lerp(self, start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
        """See :meth:`Operators.lerp`: into the memory of start."""
        if start.dtype != ms.float32:
            return super().lerp(start, end, weight)
        return self._into_second(sums.mix_in, end, start, weight)

    def _into_second(self, function: Callable, x: Tensor, y: Tensor, number: Tensor) -> Tensor:
        values, term = array_of(y), array_of(x)
        parallel_for(function, y.size, y.size, term.reshape(-1), values.reshape(-1), np.float32(number.asnumpy()))
        return Tensor.from_numpy(values)

    def reshape(self, x: Tensor, shape: Tuple[int, ...]) -> Tensor:
        """See :meth:`Operators.reshape`: the same memory."""
        return reshape(x, shape)

    def late(self, weight: Tensor, shape: Tuple[int, ...], x: Tensor) -> Tensor:
        """See :meth:`Operators.late`."""
        return reshape(weight, shape)

    def permute(self, x: Tensor, order: Tuple[int, ...]) -> Tensor:
        """See :meth:`Operators.permute`: whole rows are gathered, in a seventh of the time of a strided copy."""
        last = x.ndim - 1
        if order[-1] == last:
            rows = ops.gather(reshape(x, (-1, x.shape[-1])), _row_order(x.shape[:-1], order[:-1]), 0)
            return reshape(rows, tuple(x.shape[axis] for axis in order))
        if x.dtype == ms.float32 and tuple(order) == (*range(last - 1), last, last - 1):
            return self._swap_last(x)
        return super().permute(x, order)

    def _swap_last(self, x: Tensor) -> Tensor:
        a, b = x.shape[-2:]
        source = array_of(x).reshape(-1, a, b)
        out = empty((len(source), b, a))
        parallel_for(layout.transpose, len(source) * -(-a // layout.SQUARE), source.size, source, out)
        return Tensor.from_numpy(out.reshape(x.shape[:-2] + (b, a)))

    def by_rows(self, function: Callable[[Tensor], Tensor], x: Tensor, row_bytes: int) -> Tensor:
        """See :meth:`Operators.by_rows`: some rows at a time, into the memory of the result."""
        rows = max(1, ROWS_BYTES // row_bytes)
        if x.dtype != ms.float32 or rows >= x.shape[0]:
            return function(x)
        source, result = array_of(x), None
        for first in range(0, len(source), rows):
            block = function(Tensor.from_numpy(source[first : first + rows]))
            if result is None:
                result = empty((len(source),) + block.shape[1:])
            result[first : first + rows] = block.asnumpy()
        return Tensor.from_numpy(result)

    def memoise(self, method: Callable, *inputs: Any) -> Any:
        """See :meth:`Operators.memoise`: once for as long as the inference lasts."""
        values = [value if isinstance(value, int) else id(value) for value in inputs]
        key = (id(method.__self__), method.__name__, *values)
        if key not in self._memo:
            self._memo[key] = method(*inputs), method, inputs
        return self._memo[key][0]


def _fp32(parameter: Tensor) -> np.ndarray:
    return array_of(parameter).astype(np.float32, copy=False)


@lru_cache(maxsize=64)
def _row_order(shape: Tuple[int, ...], order: Sequence[int]) -> Tensor:
    """Where each row of an array of rows, (…), is found before its axes are put into this order."""
    rows = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    return Tensor(np.ascontiguousarray(rows.transpose(order)).reshape(-1))
