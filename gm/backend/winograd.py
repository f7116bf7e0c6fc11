"""Convolutions by minimal filtering, on CPU without gradients: F(4x4, 3x3) in space, F(4, 3) over time.

Winograd 1980; for networks Lavin & Gray 2016 (arXiv:1509.09308). A tile of 4x4 results is Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, d
being the 6x6 pixels under it and g the kernel: 36 products for each pair of channels instead of 144. Over many channels
these are 36 matrix products, between the transformations of :mod:`gm.backend.kernels.winograd`. Over time, tiles of
four frames take half of the multiplications.

The points of interpolation are 0, ±3/4, ±3/2 and ∞, not the usual 0, ±1, ±2 and ∞: in fp32 the error is 1.4e-6 of the
result's standard deviation, half of theirs (a direct convolution has 0.3e-6).
"""

from typing import Sequence

from mindspore import Tensor, ops

from gm.backend.kernels import winograd as kernels
from gm.backend.kernels.threads import parallel_for
from gm.backend.kernels.winograd import PLACES, SIDE, TILE
from gm.backend.zero_copy import array_of, empty

TILES_BYTES = 1 << 26  # of transformed pixels, and of transformed weights, at once
FRAMES_BYTES = 1 << 25  # of transformed frames at once
LEAST_CHANNELS, LEAST_TILES, LEAST_COLUMNS = 96, 24, 64  # for the transformations to pay
_MATMUL = ops.BatchMatMul()


def conv2d(x: Tensor, weight: Tensor, scale: int = 1) -> Tensor:
    """A 3x3 convolution of stride 1 with one pixel of zero padding, some rows of tiles after others.

    Args:
        x: (n, i, h, w), fp32.
        weight: (o, i, 3, 3), fp32.
        scale: 2 convolves the picture with each of its pixels doubled in both directions.

    Returns:
        (n, o, scale·h, scale·w).
    """
    pixels, taps = array_of(x), array_of(weight)
    n, c, h, w = pixels.shape
    result = empty((n, len(taps), scale * h, scale * w))
    across, count = tiles_over(scale * w), n * tiles_over(scale * h)
    rows = max(1, TILES_BYTES // (PLACES * 4 * c * across))
    outputs = max(1, TILES_BYTES // (PLACES * 4 * c))
    tiles = None
    for out in range(0, len(taps), outputs):
        some = taps[out : out + outputs].reshape(-1, c, 9)
        weights = empty((PLACES, len(some), c))
        parallel_for(kernels.to_weights, len(some), weights.size, some, weights)
        for top in range(0, count, rows):
            if tiles is None or rows < count:
                tiles = empty((PLACES, c, min(rows, count - top) * across))
                parallel_for(kernels.to_tiles, c, tiles.size, pixels, scale, top, tiles)
            products = _MATMUL(Tensor.from_numpy(weights), Tensor.from_numpy(tiles)).asnumpy()
            parallel_for(kernels.to_pixels, len(some), products.size, products, top, result, out)
    return Tensor.from_numpy(result)


def pays(x_shape: Sequence[int], weight_shape: Sequence[int]) -> bool:
    """Whether :func:`conv2d` is faster than the direct convolution: over many channels, with tiles enough.

    Args:
        x_shape: (n, i, h, w), doubled where it is to be.
        weight_shape: (o, i, 3, 3).
    """
    n, _, h, w = x_shape
    return min(weight_shape[:2]) >= LEAST_CHANNELS and n * tiles_over(h) * tiles_over(w) >= LEAST_TILES


def conv_over_time(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution of three frames, with one frame of zero padding at each end.

    Args:
        x: (b, i, t, n), fp32.
        weight: (o, i, 3, …), fp32.

    Returns:
        (b, o, t, n).
    """
    pixels, taps = array_of(x), array_of(weight)
    b, c, t, n = pixels.shape
    taps = taps.reshape(len(taps), c, 3)
    weights = empty((SIDE, len(taps), c))
    parallel_for(kernels.to_temporal_weights, len(taps), weights.size, taps, weights)
    out = empty((b, len(taps), t, n))
    tiles = b * tiles_over(t)
    width = max(1, FRAMES_BYTES // (SIDE * 4 * c * tiles))
    for start in range(0, n, width):
        stop = min(start + width, n)
        block = empty((SIDE, c, tiles * (stop - start)))
        parallel_for(kernels.frames_to_tiles, c, block.size, pixels, start, stop, block)
        products = _MATMUL(Tensor.from_numpy(weights), Tensor.from_numpy(block)).asnumpy()
        parallel_for(kernels.to_frames, len(taps), products.size, products, start, stop, out)
    return Tensor.from_numpy(out)


def pays_over_time(x_shape: Sequence[int], weight_shape: Sequence[int]) -> bool:
    """Whether :func:`conv_over_time` is the faster one: over many channels, and not where tiles are mostly padding.

    Args:
        x_shape: (b, i, t, n).
        weight_shape: (o, i, 3, …).
    """
    b, _, t, n = x_shape
    columns = b * tiles_over(t) * n
    return min(weight_shape[:2]) >= LEAST_CHANNELS and columns >= LEAST_COLUMNS and SIDE * tiles_over(t) < 3 * t


def tiles_over(pixels: int) -> int:
    """How many tiles cover so many pixels or frames."""
    return -(-pixels // TILE)
