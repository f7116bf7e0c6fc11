"""Convolutions with pictures of a few pixels as their results, as matrix products.

For them the CPU's convolution mostly rearranges its weights. A product needs no rearranging: the neighbourhoods of all
pixels are gathered by a product with a matrix of zeros and ones, which is exact, and multiplied by the weights as they
lie in memory. 3x3 convolutions over 1280 channels take a third of the time at 2x2 pixels, two thirds at 3x3, and as
long at 4x4; with a stride of 2 from 4x4 to 2x2 pixels a fourth.
"""

from functools import lru_cache
from typing import Sequence, Tuple

import numpy as np
from mindspore import Tensor, nn, ops

from gm.backend import operators as kernels

LARGEST = 3  # pixels of the result in height and in width


class SmallConv(nn.Cell):
    """A convolution for results of at most 3x3 pixels, with kernel_size // 2 pixels of zero padding.

    Args:
        kernel_size: odd.
    """

    def __init__(self, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.taps, self.stride = kernel_size**2, stride
        self.gather = neighbourhoods(kernel_size, stride)
        self.matmul = ops.MatMul()

    def takes(self, x_shape: Sequence[int]) -> bool:
        """Whether the result for an input of that shape, (n, i, h, w), is small enough."""
        return max(x_shape[2:]) <= LARGEST * self.stride

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: (n, i, h, w); weight: (o, i, k, k), of the same type -> (n, o, h/stride, w/stride), rounded up."""
        n, c, h, w = x.shape
        down, across = -(-h // self.stride), -(-w // self.stride)
        columns = x
        if self.taps > 1 or self.stride > 1:
            gather = self.gather[h - 1][w - 1].astype(x.dtype)
            columns = self.matmul(kernels.reshape(x, (n * c, h * w)), gather)
        columns = ops.transpose(kernels.reshape(columns, (n, c * self.taps, down * across)), (1, 0, 2))
        columns = kernels.reshape(columns, (c * self.taps, n * down * across))  # (i k k) (n h w)
        weight = kernels.reshape_late(weight, (weight.shape[0], c * self.taps), columns)  # o i k k -> o (i k k)
        y = kernels.reshape(self.matmul(weight, columns), (-1, n, down * across))  # o n (h w)
        return kernels.reshape(ops.transpose(y, (1, 0, 2)), (n, -1, down, across))


@lru_cache(maxsize=8)
def neighbourhoods(kernel_size: int, stride: int) -> Tuple[Tuple[Tensor, ...], ...]:
    """For every height and width of the input the matrix from its pixels to the neighbours of each pixel of the result:
    (h·w, taps·results), fp32."""
    sizes = range(1, LARGEST * stride + 1)
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
