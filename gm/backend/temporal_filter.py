"""Convolutions over time with half of the multiplications: the minimal filter F(4, 3) of :mod:`gm.backend.winograd` in
one dimension, over tiles of four frames, where operators run one by one on a CPU."""

from typing import Sequence

from mindspore import Tensor, ops

from gm.backend import shared_memory
from gm.backend.kernels import minimal_filter
from gm.backend.kernels.minimal_filter import SIDE, TILE
from gm.backend.kernels.threads import spread

BLOCK_BYTES = 1 << 25  # of transformed pixels at once
LEAST_CHANNELS = 96
LEAST_COLUMNS = 64  # pixels of all tiles, for the weights to pay
_MATMUL = ops.BatchMatMul()


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """A (3, 1) convolution over axis 2, with one frame of zero padding at each end.

    Args:
        x: (b, i, t, n), fp32.
        weight: (o, i, 3, …), fp32.

    Returns:
        (b, o, t, n).
    """
    pixels, taps = shared_memory.array_of(x), shared_memory.array_of(weight)
    b, c, t, n = pixels.shape
    taps = taps.reshape(len(taps), c, 3)
    weights = shared_memory.empty((SIDE, len(taps), c))
    spread(minimal_filter.to_temporal_weights, len(taps), weights.size, taps, weights)
    out = shared_memory.empty((b, len(taps), t, n))
    tiles = b * tiles_over(t)
    width = max(1, BLOCK_BYTES // (SIDE * 4 * c * tiles))
    for start in range(0, n, width):
        stop = min(start + width, n)
        block = shared_memory.empty((SIDE, c, tiles * (stop - start)))
        spread(minimal_filter.frames_to_tiles, c, block.size, pixels, start, stop, block)
        products = _MATMUL(Tensor.from_numpy(weights), Tensor.from_numpy(block)).asnumpy()
        spread(minimal_filter.to_frames, len(taps), products.size, products, start, stop, out)
    return Tensor.from_numpy(out)


def worthwhile(x_shape: Sequence[int], weight_shape: Sequence[int]) -> bool:
    """Whether it is faster than the direct convolution: over many channels, and not where tiles are mostly padding.

    Args:
        x_shape: (b, i, t, n).
        weight_shape: (o, i, 3, …).
    """
    b, _, t, n = x_shape
    columns = b * tiles_over(t) * n
    return min(weight_shape[:2]) >= LEAST_CHANNELS and columns >= LEAST_COLUMNS and SIDE * tiles_over(t) < 3 * t


def tiles_over(frames: int) -> int:
    return -(-frames // TILE)
