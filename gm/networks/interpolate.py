"""PyTorch's `interpolate` with half-pixel centres: bilinear, and bicubic with antialias.

Both are separable: a pixel of the result is a weighted sum of a few neighbours (taps) along each axis. Weights and
sums are rounded to fp32 where PyTorch's kernels for AVX2 round them, so that the results are the same to the last bit.
"""

from typing import Any, Callable, NamedTuple, Tuple

import numpy as np

GROUP = 4  # taps that PyTorch's kernel multiplies together; those that are left over it multiplies and adds in one
CUBIC_A = -0.5  # of the cubic convolution kernel (Keys 1981) where PyTorch antialiases


class Taps(NamedTuple):
    """The neighbours that each of m pixels is made from, and their weights."""

    positions: np.ndarray  # (m, taps)
    weights: np.ndarray  # (m, taps), fp32
    count: np.ndarray  # (m,): how many of the taps are used


def interpolate(image: np.ndarray, size: Tuple[int, int], taps: Callable[[int, int], Taps]) -> np.ndarray:
    """(…, h, w), fp32 -> (…, *size), along the rows first; `taps` is one of the functions below."""
    for axis in (-1, -2):
        if image.shape[axis] != size[axis]:
            image = _along(np.moveaxis(image, axis, -1), taps(image.shape[axis], size[axis]))
            image = np.moveaxis(image, -1, axis)
    return np.ascontiguousarray(image)


def bilinear(size: int, new_size: int) -> Taps:
    """Two taps, without antialias; edges are repeated."""
    scale = np.float32(size) / np.float32(new_size)
    source = np.maximum(_fused(np.arange(new_size) + 0.5, scale, -0.5), 0)
    first = source.astype(np.int64)
    upper = source - first.astype(np.float32)
    positions = np.stack([np.minimum(first + 1, size - 1), first], axis=1)  # in the order in which they are added
    return Taps(positions, np.stack([upper, np.float32(1) - upper], axis=1), np.full(new_size, 2))


def antialiased_bicubic(size: int, new_size: int) -> Taps:
    """Keys' cubic, widened by the factor of the reduction; what lies outside has no weight."""
    scale = np.float32(size) / np.float32(new_size)
    widen = max(scale, np.float32(1))
    support = np.float32(2) * widen
    centres = (np.float64(scale) * (np.arange(new_size) + 0.5)).astype(np.float32)
    first = np.maximum(((centres - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    stop = np.minimum(((centres + support).astype(np.float64) + 0.5).astype(np.int64), size)
    positions = first[:, None] + np.arange((stop - first).max())
    offsets = positions.astype(np.float32) - centres[:, None]
    distances = ((offsets.astype(np.float64) + 0.5) * np.float64(np.float32(1) / widen)).astype(np.float32)
    weights = np.where(positions < stop[:, None], _cubic(np.abs(distances)), np.float32(0))
    total = np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]  # from left to right, in fp32
    return Taps(np.minimum(positions, size - 1), weights / total, stop - first)


def _along(image: np.ndarray, taps: Taps) -> np.ndarray:
    """(…, w) -> (…, m): the taps are added from left to right."""
    result = image[..., taps.positions[:, 0]] * taps.weights[:, 0]
    in_groups = (taps.count - 1) // GROUP * GROUP
    for index in range(1, taps.positions.shape[1]):
        value, weight = image[..., taps.positions[:, index]], taps.weights[:, index]
        result = np.where(index <= in_groups, result + value * weight, _fused(value, weight, result))
    return result


def _fused(p: np.ndarray, q: Any, r: Any) -> np.ndarray:
    """p·q + r, rounded once."""
    return (p.astype(np.float64) * q + r).astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' piecewise cubic at distances x."""
    a = CUBIC_A
    near = _fused(_fused(x, a + 2, -(a + 3)) * x, x, 1.0)
    far = _fused(_fused(_fused(x, a, -5 * a), x, 8 * a), x, -4 * a)
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))
