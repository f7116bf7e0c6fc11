"""Images that are too large at once, tile by tile."""

from typing import Callable, List, Tuple

import numpy as np

OVERLAP = 4  # neighbours have a fourth of a tile in common, or more
Function = Callable[[np.ndarray], np.ndarray]


def in_tiles(function: Function, x: np.ndarray, tile: int, units: Tuple[int, int]) -> np.ndarray:
    """`function(x)` from overlapping tiles of the image, which fade into each other linearly.

    A network that normalises over the whole image, or attends to all of it, sees a tile alone here: the result
    differs a little from the whole image's. An image of one tile is left whole.

    Args:
        function: of host arrays, (n, c, h·u, w·u) -> (n, c', h·v, w·v), fp32, for any h and w.
        x: (n, c, h·u, w·u).
        tile: largest h and w of a tile; 0 for any.
        units: u and v, the pixels that one of h and w stands for, before and after.

    Returns:
        (n, c', h·v, w·v), fp32.
    """
    before, after = units
    height, width = (size // before for size in x.shape[-2:])
    rows, columns = _starts(height, tile), _starts(width, tile)
    if len(rows) == len(columns) == 1:
        return function(x)
    down, across = min(tile, height), min(tile, width)
    weight = np.outer(_fading(down * after, tile * after), _fading(across * after, tile * after))
    weights = np.zeros((height * after, width * after), np.float32)
    total = np.zeros(0, np.float32)
    for top in rows:
        for left in columns:
            part = function(np.ascontiguousarray(x[(..., *_region(top, left, down, across, before))]))
            if not total.size:
                total = np.zeros(part.shape[:-2] + weights.shape, np.float32)
            region = _region(top, left, down, across, after)
            total[(..., *region)] += part * weight
            weights[region] += weight
    total /= weights
    return total


def _starts(size: int, tile: int) -> List[int]:
    """Where tiles begin, evenly spread, so that they cover `size`."""
    if tile == 0 or size <= tile:
        return [0]
    overlap = tile // OVERLAP
    count = -(-(size - overlap) // (tile - overlap))
    return [round(index * (size - tile) / (count - 1)) for index in range(count)]


def _fading(size: int, tile: int) -> np.ndarray:
    """The weights along a side of a tile: 1 inside, falling towards both ends."""
    from_end = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1
    return np.minimum(1, from_end / (tile // OVERLAP + 1)).astype(np.float32)


def _region(top: int, left: int, down: int, across: int, unit: int) -> Tuple[slice, slice]:
    return slice(top * unit, (top + down) * unit), slice(left * unit, (left + across) * unit)
