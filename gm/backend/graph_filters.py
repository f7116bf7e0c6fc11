"""Minimal filtering (:mod:`gm.backend.winograd`) in compiled networks with gradients, on CPU.

The ways to tiles and back are linear: as operators of a graph they are loops, and their gradients the adjoint loops.
The products between them, and their gradients, are the graph's own. Pictures and clips are whole tiles.
"""

from typing import Sequence, Tuple

import numpy as np
from mindspore import Tensor, nn, ops

from gm.backend.cook_toom import PLACES, matrices, transforms
from gm.backend.graph_operators import LinearLoop
from gm.backend.kernels import minimal_filter, minimal_filter_adjoint
from gm.backend.kernels.minimal_filter import SIDE, TILE
from gm.backend.kernels.threads import spread

Shape = Sequence[int]


class FilterByTiles(nn.Cell):
    """A 3x3 convolution of stride 1 with one pixel of zero padding, in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.to_tiles = LinearLoop(_to_tiles, _from_tiles, _tiles_of_pixels, _pixels_of_tiles)
        self.taps_to_points = transforms()[1]
        self.to_pixels = LinearLoop(_to_pixels, _from_pixels, _pixels_of_tiles, _tiles_of_pixels)
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
        self.to_tiles = LinearLoop(_to_time_tiles, _from_time_tiles, _tiles_of_frames, _frames_of_tiles)
        self.taps_to_points = Tensor(matrices()[1].astype(np.float32))
        self.to_pixels = LinearLoop(_to_frames, _from_frames, _frames_of_tiles, _tiles_of_frames)


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
    spread(minimal_filter.to_tiles, x.shape[1], out.size, x, 1, 0, _flat(out))


def _from_tiles(tiles: np.ndarray, out: np.ndarray) -> None:
    spread(minimal_filter_adjoint.from_tiles, out.shape[1], tiles.size, _flat(tiles), out)


def _to_pixels(tiles: np.ndarray, out: np.ndarray) -> None:
    spread(minimal_filter.to_pixels, out.shape[1], tiles.size, _flat(tiles), 0, out, 0)


def _from_pixels(x: np.ndarray, out: np.ndarray) -> None:
    spread(minimal_filter_adjoint.from_pixels, x.shape[1], out.size, x, _flat(out))


def _to_time_tiles(x: np.ndarray, out: np.ndarray) -> None:
    spread(minimal_filter.frames_to_tiles, x.shape[1], out.size, x, 0, x.shape[3], _flat(out))


def _from_time_tiles(tiles: np.ndarray, out: np.ndarray) -> None:
    spread(minimal_filter_adjoint.tiles_to_frames, out.shape[1], tiles.size, _flat(tiles), out)


def _to_frames(tiles: np.ndarray, out: np.ndarray) -> None:
    spread(minimal_filter.to_frames, out.shape[1], tiles.size, _flat(tiles), 0, out.shape[3], out)


def _from_frames(x: np.ndarray, out: np.ndarray) -> None:
    spread(minimal_filter_adjoint.from_frames, x.shape[1], out.size, x, _flat(out))
