"""Operators on a CPU with gradients: kernels as operators of the compiled graph, and updates of weights in place.

The ways to Winograd's tiles and back are linear: as operators of a graph they are kernels, and their gradients the
adjoint kernels. The products between them, and their gradients, are the graph's own. Kernels are called from the graph
with the operands' own memory; MindSpore copies what they return.
"""

import threading
from functools import cache
from typing import Callable, Optional, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.backend.cook_toom import matrices
from gm.backend.host import CompiledOperators
from gm.backend.kernels import sums, updates, winograd, winograd_adjoint
from gm.backend.kernels.threads import parallel_for
from gm.backend.kernels.winograd import PLACES, SIDE, TILE
from gm.backend.operators import NO_PADDING, Padding, same_padding

LARGE = 1 << 20  # numbers, from which on a kernel makes up for being called
LEAST_CHANNELS = 48
MOST_WEIGHTS = 1 << 16  # pairs of channels: transformed weights are held until the gradients are there

Shape = Sequence[int]
_thread = threading.local()


@ms.jit_class
class TrainingOperators(CompiledOperators):
    """The CPU's operators with kernels where these are faster in a compiled graph with gradients.

    Args:
        compiled: in graph mode; operator by operator there are no kernels.
        fused: as in :class:`gm.backend.host.CompiledOperators`.
    """

    def __init__(self, compiled: bool = True, fused: bool = False) -> None:
        super().__init__(fused)
        self.compiled = compiled
        self.updates_from_host = _memory_is_shared()
        self.bias_add, self.by_tiles, self.over_time = BiasAdd(), FilterByTiles(), FilterOverTime()

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`Operators.geglu`: the weights are divided, not their result."""
        if not self.compiled:
            return super().geglu(x, weight, bias)
        weights, biases = ops.chunk(weight, 2, axis=0), ops.chunk(bias, 2, axis=0)
        return self.linear(x, weights[0], biases[0]) * self.gelu(self.linear(x, weights[1], biases[1]))

    def conv2d(
        self,
        direct: ops.Conv2D,
        x: Tensor,
        weight: Tensor,
        bias: Optional[Tensor],
        stride: int = 1,
        padding: Padding = NO_PADDING,
    ) -> Tensor:
        """See :meth:`Operators.conv2d`."""
        square = weight.shape[3] == 3 and padding == same_padding(3) and stride == 1
        if square and self.filter_pays(x, weight) and x.shape[3] % TILE == 0 and tiles_pay(x.shape, weight.shape):
            return self.add_bias(self.by_tiles(x, weight), bias)
        return super().conv2d(direct, x, weight, bias, stride, padding)

    def conv_over_time(self, direct: ops.Conv2D, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`Operators.conv_over_time`."""
        if self.filter_pays(x, weight):
            return self.add_bias(self.over_time(x, self.late(weight, weight.shape[:4], x)), bias)
        return super().conv_over_time(direct, x, weight, bias)

    def filter_pays(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a convolution is done in tiles: over many channels and whole tiles of them, but, for the memory's
        sake, in a small network only. x: (n, i, h, w) or (b, i, t, n); weight: (o, i, 3, …)."""
        o, i = weight.shape[:2]
        many = self.compiled and x.dtype == ms.float32 and min(o, i) >= LEAST_CHANNELS
        return many and o * i <= MOST_WEIGHTS and x.shape[2] % TILE == 0

    def add_bias(self, y: Tensor, bias: Optional[Tensor]) -> Tensor:
        """See :meth:`Operators.add_bias`: MindSpore's gradient of it takes five times as long over (8192, 512)."""
        large = self.compiled and y.ndim == 2 and y.dtype == ms.float32 and y.shape[0] * y.shape[1] >= LARGE
        if large and bias is not None:
            return self.bias_add(y, bias)
        return super().add_bias(y, bias)

    def adamw(self, parameter, first, second, gradient, scale, lr, beta1, beta2, eps, decay):
        """See :meth:`Operators.adamw`: one kernel where MindSpore starts several operators."""
        arrays = [_memory(tensor) for tensor in (parameter, first, second, gradient)]
        numbers = np.array((scale, lr, beta1, beta2, eps, decay), np.float32)
        parallel_for(updates.adamw, parameter.size, parameter.size, *arrays, numbers)

    def move_average(self, average, parameter, rate):
        """See :meth:`Operators.move_average`."""
        parallel_for(updates.move, average.size, average.size, _memory(average), _memory(parameter), np.float32(rate))

    def square_sum(self, tensor):
        """See :meth:`Operators.square_sum`; a number."""
        values = _memory(tensor)
        block_sums = np.empty(-(-values.size // updates.BLOCK))
        parallel_for(updates.square_sums, block_sums.size, values.size, values, block_sums)
        return float(block_sums.sum())


def tiles_pay(x_shape: Shape, weight_shape: Shape) -> bool:
    """Whether there are enough tiles of (n, i, h, w) for the weights (o, i, …) to be transformed."""
    return 2 * x_shape[0] * x_shape[2] * x_shape[3] >= TILE**2 * max(weight_shape[:2])


@cache
def _memory_is_shared() -> bool:
    """Whether operators see what is written to a parameter's memory."""
    parameter = Parameter(Tensor(np.ones(1, np.float32)), "probe")
    _memory(parameter)[0] = 2
    return float((parameter + 1).asnumpy()[0]) == 3


def _memory(tensor: Tensor) -> np.ndarray:
    return tensor.asnumpy().reshape(-1)


@cache
def operator(function: Callable, out_shape: Callable) -> ops.Custom:
    """A graph's operator of one fp32 tensor.

    Args:
        function: of an array and of the array of the result, which it fills.
        out_shape: the result's shape from the input's.
    """

    def run(x: np.ndarray) -> np.ndarray:
        out = _until_next(out_shape(x.shape))
        function(x, out)
        return out

    return ops.Custom(run, lambda shape: list(out_shape(shape)), lambda dtype: dtype, func_type="pyfunc")


def _until_next(shape: Shape) -> np.ndarray:
    """Memory for a result, until this thread's next one: it is copied at once."""
    size = int(np.prod(shape))
    if size > getattr(_thread, "memory", np.empty(0)).size:
        _thread.memory = np.empty(size, np.float32)
    return _thread.memory[:size].reshape(shape)


class LinearKernel(nn.Cell):
    """A linear map of one tensor as a kernel, with the adjoint kernel as its gradient.

    Args:
        function, adjoint: of an array and of the array of the result, which they fill.
        out_shape, in_shape: the result's shape from the input's, and the other way round.
    """

    def __init__(self, function: Callable, adjoint: Callable, out_shape: Callable, in_shape: Callable) -> None:
        super().__init__()
        self.function, self.adjoint = operator(function, out_shape), operator(adjoint, in_shape)

    def construct(self, x: Tensor) -> Tensor:
        """Any shape that the kernel takes, fp32."""
        return self.function(x)

    def bprop(self, x, out, dout):
        """The gradient of `x` from that of the result."""
        return (self.adjoint(dout),)


class BiasAdd(nn.Cell):
    """A vector added to every row, with the bias' gradient as a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.add, self.sum = ops.BiasAdd(), operator(_sum_of_rows, lambda shape: shape[1:])

    def construct(self, y: Tensor, bias: Tensor) -> Tensor:
        """y: (n, c); bias: (c,), both fp32 -> (n, c)."""
        return self.add(y, bias)

    def bprop(self, y, bias, out, dout):
        """The gradients of `y` and of `bias` from that of the result."""
        return dout, self.sum(dout)


def _sum_of_rows(x: np.ndarray, out: np.ndarray) -> None:
    blocks = np.empty((-(-len(x) // sums.ROWS), out.size), np.float32)
    parallel_for(sums.over_rows, len(blocks), x.size, x, blocks)
    out[:] = blocks.sum(0, dtype=np.float64)


class FilterByTiles(nn.Cell):
    """A 3x3 convolution of stride 1 with one pixel of zero padding, in fp32, over whole tiles."""

    def __init__(self) -> None:
        super().__init__()
        g = matrices()[1]
        self.to_tiles = LinearKernel(_to_tiles, _from_tiles, _tiles_of_pixels, _pixels_of_tiles)
        self.taps_to_points = Tensor(np.einsum("ij,kl->ikjl", g, g).reshape(PLACES, 9).astype(np.float32))
        self.to_pixels = LinearKernel(_to_pixels, _from_pixels, _pixels_of_tiles, _tiles_of_pixels)
        self.weights_matmul, self.matmul = ops.MatMul(transpose_b=True), ops.BatchMatMul()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: (n, i, h, w), h and w multiples of 4; weight: (o, i, 3, 3) -> (n, o, h, w)."""
        tiles = self.to_tiles(x)
        places, channels = tiles.shape[:2]
        outputs = weight.shape[0]
        weights = self.weights_matmul(self.taps_to_points, weight.reshape(outputs * channels, -1))  # 36 (o i)
        products = self.matmul(weights.reshape(places, outputs, channels), tiles.reshape(places, channels, -1))
        return self.to_pixels(products.reshape((places, outputs) + tiles.shape[2:]))


class FilterOverTime(FilterByTiles):
    """A (3, 1) convolution with one frame of zero padding at each end, in fp32.

    x: (b, i, t, n), t a multiple of 4; weight: (o, i, 3, 1) -> (b, o, t, n).
    """

    def __init__(self) -> None:
        super().__init__()
        self.to_tiles = LinearKernel(_to_time_tiles, _from_time_tiles, _tiles_of_frames, _frames_of_tiles)
        self.taps_to_points = Tensor(matrices()[1].astype(np.float32))
        self.to_pixels = LinearKernel(_to_frames, _from_frames, _frames_of_tiles, _tiles_of_frames)


def _tiles_of_pixels(shape: Shape) -> Tuple[int, ...]:
    n, c, h, w = shape
    return PLACES, c, w // TILE, n, h // TILE


def _pixels_of_tiles(shape: Shape) -> Tuple[int, ...]:
    _, c, across, n, down = shape
    return n, c, down * TILE, across * TILE


def _tiles_of_frames(shape: Shape) -> Tuple[int, ...]:
    b, c, t, n = shape
    return SIDE, c, b, t // TILE, n


def _frames_of_tiles(shape: Shape) -> Tuple[int, ...]:
    _, c, b, along, n = shape
    return b, c, along * TILE, n


def _flat(tiles: np.ndarray) -> np.ndarray:
    return tiles.reshape(tiles.shape[:2] + (-1,))


def _to_tiles(x: np.ndarray, out: np.ndarray) -> None:
    parallel_for(winograd.to_tiles, x.shape[1], out.size, x, 1, 0, _flat(out))


def _from_tiles(tiles: np.ndarray, out: np.ndarray) -> None:
    parallel_for(winograd_adjoint.from_tiles, out.shape[1], tiles.size, _flat(tiles), out)


def _to_pixels(tiles: np.ndarray, out: np.ndarray) -> None:
    parallel_for(winograd.to_pixels, out.shape[1], tiles.size, _flat(tiles), 0, out, 0)


def _from_pixels(x: np.ndarray, out: np.ndarray) -> None:
    parallel_for(winograd_adjoint.from_pixels, x.shape[1], out.size, x, _flat(out))


def _to_time_tiles(x: np.ndarray, out: np.ndarray) -> None:
    parallel_for(winograd.frames_to_tiles, x.shape[1], out.size, x, 0, x.shape[3], _flat(out))


def _from_time_tiles(tiles: np.ndarray, out: np.ndarray) -> None:
    parallel_for(winograd_adjoint.tiles_to_frames, out.shape[1], tiles.size, _flat(tiles), out)


def _to_frames(tiles: np.ndarray, out: np.ndarray) -> None:
    parallel_for(winograd.to_frames, out.shape[1], tiles.size, _flat(tiles), 0, out.shape[3], out)


def _from_frames(x: np.ndarray, out: np.ndarray) -> None:
    parallel_for(winograd_adjoint.from_frames, x.shape[1], out.size, x, _flat(out))
