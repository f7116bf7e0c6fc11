"""Gaussian noise from a seed: NumPy's, and what PyTorch's generator on the CPU draws from the same seed.

A generator has `standard_normal(shape, dtype)`; one draw follows the other, as in the tool that is followed.
"""

from math import prod
from typing import Any, Callable, Mapping, Optional, Sequence

import numpy as np

BLOCK = 16  # numbers that PyTorch makes together: eight radii and eight angles
SMALL = 16  # fewer numbers than these are drawn one by one, in fp64


class TorchGenerator:
    """The draws of `torch.Generator().manual_seed(seed)`, to the rounding of logarithm and cosine.

    PyTorch seeds a Mersenne twister with the seed's lower 32 bits. Numbers come from pairs of uniform ones by Box and
    Muller's transform.

    Args:
        seed: 0 or more.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: Optional[float] = None  # the second number of a small draw's last pair

    def standard_normal(self, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        """Unit Gaussian numbers of this shape, drawn in fp32 as `torch.randn` does."""
        size = prod(shape)
        if size < SMALL:
            return np.array([self._one() for _ in range(size)], np.float32).reshape(shape).astype(dtype, copy=False)
        uniform = self._uniform(size)
        numbers = np.empty(size, np.float32)
        whole = size - size % BLOCK
        numbers[:whole] = _box_muller(uniform[:whole])
        if whole < size:  # the last block is drawn anew, over numbers that are there already
            numbers[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return numbers.reshape(shape).astype(dtype, copy=False)

    def _draw_words(self, count: int) -> np.ndarray:
        return self._words.randint(0, 1 << 32, count, np.uint32)

    def _uniform(self, count: int) -> np.ndarray:
        """Multiples of 2^-24 in 0..1, fp32."""
        return (self._draw_words(count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def _one(self) -> float:
        if self._kept is not None:
            number, self._kept = self._kept, None
            return number
        words = self._draw_words(4).astype(np.uint64)
        angle, radius = ((words[0::2] << np.uint64(32) | words[1::2]) & np.uint64((1 << 53) - 1)) * 2.0**-53
        radius = np.sqrt(-2 * np.log1p(-radius))
        self._kept = float(radius * np.sin(2 * np.pi * angle))
        return float(radius * np.cos(2 * np.pi * angle))


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """(n,) uniform in 0..1 -> (n,) Gaussian; n is a multiple of the block."""
    pairs = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


GENERATORS: Mapping[str, Callable[[int], Any]] = {"numpy": np.random.default_rng, "torch": TorchGenerator}
