"""Antialiased bicubic resizing, as SVD's image encoder saw its images in training.

The published model was trained with kornia's `resize(interpolation="bicubic", align_corners=True, antialias=True)`: a
Gaussian blur, then bicubic interpolation with corners aligned. Both are linear along each axis, so a resize is one
matrix per axis.
"""

import numpy as np

CUBIC_A = -0.75  # of the cubic convolution kernel (Keys 1981), PyTorch's choice
MIN_SIGMA = 0.001


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(…, h, w) -> (…, height, width), fp32."""
    rows = resize_matrix(image.shape[-2], height)
    columns = resize_matrix(image.shape[-1], width)
    return (rows @ image.astype(np.float64) @ columns.T).astype(np.float32)


def resize_matrix(size: int, new_size: int) -> np.ndarray:
    """The blur and the interpolation of one axis: (new_size, size)."""
    return cubic_matrix(size, new_size) @ blur_matrix(size, size / new_size)


def blur_matrix(size: int, factor: float) -> np.ndarray:
    """A Gaussian of σ = (factor - 1) / 2 with reflected edges: (size, size)."""
    sigma = max((factor - 1.0) / 2.0, MIN_SIGMA)
    taps = int(max(4.0 * sigma, 3))
    taps += 1 - taps % 2
    offsets = np.arange(taps) - taps // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    positions = np.abs(np.arange(size)[:, None] + offsets)  # reflected at 0 …
    last = size - 1
    positions = last - np.abs(last - positions)  # … and at the other edge
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None].repeat(taps, 1), np.clip(positions, 0, last)), kernel)
    return matrix


def cubic_matrix(size: int, new_size: int) -> np.ndarray:
    """Cubic convolution with aligned corners and clamped edges: (new_size, size)."""
    scale = (size - 1) / (new_size - 1) if new_size > 1 else 0.0
    centres = np.arange(new_size) * scale
    base = np.floor(centres).astype(int)
    matrix = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        weight = cubic_kernel(centres - (base + offset))
        np.add.at(matrix, (np.arange(new_size), np.clip(base + offset, 0, size - 1)), weight)
    return matrix


def cubic_kernel(x: np.ndarray) -> np.ndarray:
    """Keys' piecewise cubic at distance x."""
    x, a = np.abs(x), CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
