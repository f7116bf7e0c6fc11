"""3x3 convolutions with a fourth of the multiplications: minimal filtering, F(4x4, 3x3).

Winograd 1980; for networks Lavin & Gray 2016 (arXiv:1509.09308). A tile of 4x4 results is Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, d
being the 6x6 pixels under it and g the kernel: 36 products for each pair of channels instead of 144. Over many channels
these are 36 matrix products. The way to and from tiles is a convolution and a transposed one with constant kernels
where networks are compiled, and loops (:mod:`gm.backend.kernels.minimal_filter`) where they run operator by operator.

The points of interpolation are 0, ±3/4, ±3/2 and ∞, not the usual 0, ±1, ±2 and ∞: in fp32 the error is 1.4e-6 of the
result's standard deviation, half of theirs (a direct convolution has 0.3e-6).
"""

from typing import Sequence, Tuple

from mindspore import Tensor, nn, ops

from gm.backend import operators as kernels
from gm.backend import shared_memory
from gm.backend.cook_toom import PLACES, transforms
from gm.backend.kernels import minimal_filter
from gm.backend.kernels.minimal_filter import TILE
from gm.backend.kernels.threads import spread

BLOCK_BYTES = 1 << 27  # of transformed pixels that are held at once
WEIGHTS_BYTES = 1 << 28  # of transformed weights
LEAST_CHANNELS = 96
LEAST_TILES = 64
LOOP_BYTES = 1 << 26  # of transformed pixels, and of transformed weights, at once where loops make them
LOOP_LEAST_TILES = 24


class WinogradConv(nn.Cell):
    """A 3x3 convolution of stride 1 with one pixel of zero padding, in fp32.

    Args:
        scale: 2 convolves the picture with each of its pixels doubled in both directions, which is never made: of the
            six pixels in a row of a doubled tile four are different.
    """

    def __init__(self, scale: int = 1) -> None:
        super().__init__()
        self.scale = scale
        self.step, self.reach = TILE // scale, TILE // scale + 2  # of the input's pixels
        self.to_tiles, self.to_weights, self.to_pixels = transforms(scale)
        self.weights_matmul = ops.MatMul(transpose_b=True)
        self.matmul = ops.BatchMatMul()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: (n, i, h, w); weight: (o, i, 3, 3), both fp32 -> (n, o, scale·h, scale·w)."""
        if kernels.sharing:
            return self.in_place(x, weight)
        n, c, h, w = x.shape
        h, w = self.scale * h, self.scale * w
        frames, rows, outputs = block_size((n, c, h, w), weight.shape)
        channels = []
        for out in range(0, weight.shape[0], outputs):
            weights = self.transformed(kernels.part(weight, out, outputs), x)
            blocks = []
            for first in range(0, n, frames):
                block = kernels.part(x, first, frames)
                bands = []
                for top in range(0, h, rows):
                    bands.append(self.block(block, weights, top, min(rows, h - top)))
                blocks.append(kernels.joined(bands, 2))
            channels.append(kernels.joined(blocks, 0))
        return kernels.joined(channels, 1)

    def in_place(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same in PyNative mode: some rows of tiles after others, into the memory of the result."""
        pixels, kernel = shared_memory.array_of(x), shared_memory.array_of(weight)
        n, c, h, w = pixels.shape
        result = shared_memory.empty((n, len(kernel), self.scale * h, self.scale * w))
        across, count = tiles_over(self.scale * w), n * tiles_over(self.scale * h)
        rows = max(1, LOOP_BYTES // (PLACES * 4 * c * across))
        outputs = max(1, LOOP_BYTES // (PLACES * 4 * c))
        tiles = None
        for out in range(0, len(kernel), outputs):
            taps = kernel[out : out + outputs].reshape(-1, c, 9)
            weights = shared_memory.empty((PLACES, len(taps), c))
            spread(minimal_filter.to_weights, len(taps), weights.size, taps, weights)
            for top in range(0, count, rows):
                if tiles is None or rows < count:
                    tiles = shared_memory.empty((PLACES, c, min(rows, count - top) * across))
                    spread(minimal_filter.to_tiles, c, tiles.size, pixels, self.scale, top, tiles)
                products = self.matmul(Tensor.from_numpy(weights), Tensor.from_numpy(tiles)).asnumpy()
                spread(minimal_filter.to_pixels, len(taps), products.size, products, top, result, out)
        return Tensor.from_numpy(result)

    def transformed(self, weight: Tensor, x: Tensor) -> Tensor:
        """(o, i, 3, 3) -> (36, o, i), not before x is there."""
        o, c = weight.shape[:2]
        flat = kernels.reshape_late(weight, (o * c, 9), x)
        return kernels.reshape(self.weights_matmul(self.to_weights, flat), (PLACES, o, c))

    def block(self, x: Tensor, weights: Tensor, top: int, rows: int) -> Tensor:
        """Some rows of the result, from `top` on: (n, i, h, w) -> (n, o, rows, scale·w)."""
        n, c, h, w = x.shape
        o, width = weights.shape[1], self.scale * w
        down, across = tiles_over(rows), tiles_over(width)
        first = top // self.scale - 1
        last, right = first + down * self.step + 2, across * self.step + 1  # -1 and these are padding where outside
        x = kernels.rows_between(x, max(0, first), min(h, last))
        x = kernels.reshape(x, (n * c, 1) + x.shape[2:])
        pad = (max(0, -first), max(0, last - h), 1, right - w)
        to_tiles = ops.Conv2D(PLACES, self.reach, pad_mode="pad", pad=pad, stride=self.step)
        tiles = kernels.reshape(to_tiles(x, self.to_tiles), (n, c, PLACES, down * across))
        tiles = kernels.swap_axes(tiles, 0, 2)  # 36 c n tiles
        tiles = self.matmul(weights, kernels.reshape(tiles, (PLACES, c, -1)))  # 36 o (n tiles)
        tiles = kernels.swap_axes(kernels.reshape(tiles, (PLACES, o, n, down * across)), 0, 2)  # n o 36 tiles
        tiles = kernels.reshape(tiles, (n * o, PLACES, down, across))
        to_pixels = ops.Conv2DTranspose(PLACES, TILE, pad_mode="valid", stride=TILE)
        y = to_pixels(tiles, self.to_pixels, (n * o, 1, down * TILE, across * TILE))
        y = kernels.reshape(y, (n, o, down * TILE, across * TILE))
        return y if y.shape[2:] == (rows, width) else y[:, :, :rows, :width]


def worthwhile(x_shape: Sequence[int], weight_shape: Sequence[int]) -> bool:
    """Whether it is faster than the direct convolution: over many channels, with tiles enough for the weights to pay.

    Args:
        x_shape: (n, i, h, w).
        weight_shape: (o, i, 3, 3).
    """
    n, _, h, w = x_shape
    least = LOOP_LEAST_TILES if kernels.sharing else LEAST_TILES
    return min(weight_shape[:2]) >= LEAST_CHANNELS and n * tiles_over(h) * tiles_over(w) >= least


def tiles_over(pixels: int) -> int:
    return -(-pixels // TILE)


def block_size(x_shape: Sequence[int], weight_shape: Sequence[int]) -> Tuple[int, int, int]:
    """Frames, rows of each, and channels of the result that are computed at once, for either factor to fit its budget.

    Args:
        x_shape: (n, i, h, w).
        weight_shape: (o, i, 3, 3).
    """
    n, channels, h, w = x_shape
    column = channels * PLACES * 4  # bytes of one tile of all channels
    outputs = max(1, min(weight_shape[0], WEIGHTS_BYTES // column))
    frame = column * tiles_over(h) * tiles_over(w)
    if frame <= BLOCK_BYTES:
        return min(n, BLOCK_BYTES // frame), h, outputs
    bands = -(-frame // BLOCK_BYTES)
    return 1, TILE * -(-tiles_over(h) // bands), outputs
