"""3x3 convolutions by Winograd's minimal filtering, F(2x2, 3x3), for CPUs: 16 products where the definition has 36.

Y = Aᵀ[(G w Gᵀ) ⊙ (Bᵀ x B)]A for tiles x of 4x4 input pixels, two apart, which give 2x2 output pixels each (Lavin & Gray
2016, section 4.1). The sum over input channels stands between the transforms: for each of the 16 places in a tile a
matrix product of weights with all tiles. In fp32 the result is as near to the exact one as the definition's.
"""

from typing import Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.kernels import fused_kernels
from gm.layers import Conv2d
from gm.tensor_source import TensorSource

LEAST_CHANNELS = 256  # in and out; with fewer the transforms take longer than the products save
TILES_BUDGET = 1 << 28  # bytes of transformed tiles that are held at once

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_B_T = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_A_T = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
# The two-dimensional transforms as matrices: a place in the tile by a place in the kernel, the input, the result.
_KERNEL = np.einsum("ai,bj->abij", _G, _G).reshape(16, 9)
_INPUT = np.einsum("ai,bj->abij", _B_T, _B_T).reshape(16, 1, 4, 4)
_OUTPUT = np.einsum("pa,qb->pqab", _A_T, _A_T).reshape(4, 16)


def transform_weight(weight: np.ndarray) -> np.ndarray:
    """G w Gᵀ: (o, i, 3, 3) -> (16, o, i), fp32."""
    return (_KERNEL @ weight.reshape(-1, 9).T).reshape(16, *weight.shape[:2])


class WinogradConv(nn.Cell):
    """A 3x3 convolution of stride 1 with one pixel of zero padding, from transformed weights.

    Args:
        weight: (o, i, 3, 3), fp32.
        budget: bytes of transformed tiles that are held at once; pictures are taken in blocks to keep to it.
    """

    def __init__(self, weight: np.ndarray, budget: int = TILES_BUDGET) -> None:
        super().__init__()
        self.out_channels, self.in_channels = weight.shape[:2]
        self.budget = budget
        self.weight = Parameter(Tensor.from_numpy(transform_weight(weight)), requires_grad=False)
        self.input = Parameter(Tensor(_INPUT), requires_grad=False)
        self.output = Parameter(Tensor(_OUTPUT), requires_grad=False)
        # One zero more at the bottom and at the right where the number of rows or columns is odd.
        pads = [(1, 1 + odd_rows, 1, 1 + odd_columns) for odd_rows in (0, 1) for odd_columns in (0, 1)]
        self.tiles = [ops.Conv2D(16, 4, pad_mode="pad", pad=pad, stride=2) for pad in pads]
        self.product, self.matmul = ops.BatchMatMul(), ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        """(n, i, h, w) -> (n, o, h, w), without a bias."""
        n, _, h, w = x.shape
        tile_bytes = 16 * max(self.in_channels, self.out_channels) * (-(-h // 2)) * (-(-w // 2)) * 4  # of one picture
        size = max(1, self.budget // tile_bytes)
        if n <= size:
            return self.convolve(x)
        blocks = []
        for first in range(0, n, size):
            blocks.append(self.convolve(x[first : min(first + size, n)]))
        return ops.cat(blocks, axis=0)

    def convolve(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows, columns = -(-h // 2), -(-w // 2)
        tiles = self.tiles[h % 2 * 2 + w % 2](x.reshape(n * c, 1, h, w), self.input)  # (n c) 16 rows columns
        tiles = ops.transpose(tiles.reshape(n, c, 16, rows * columns), (2, 1, 0, 3))  # 16 c n (rows columns)
        products = self.product(self.weight, tiles.reshape(16, c, -1))  # 16 o (n rows columns)
        y = self.matmul(self.output, products.reshape(16, -1))  # (2 2) (o n rows columns)
        y = ops.transpose(y.reshape(2, 2, self.out_channels, n, rows, columns), (3, 2, 4, 0, 5, 1))
        y = y.reshape(n, self.out_channels, 2 * rows, 2 * columns)
        return y if h % 2 == 0 and w % 2 == 0 else y[:, :, :h, :w]


def accelerate(
    net: nn.Cell, source: TensorSource, prefix: str = "", needed: Optional[Callable[[str], bool]] = None
) -> None:
    """Gives the wide 3x3 convolutions of a loaded network their Winograd form, on CPU in fp32; for inference.

    The transformed weights take 16/9 of the memory of the plain ones, which are let go.

    Args:
        source: what the network was loaded from.
        prefix: what the file's names have before the network's.
        needed: chooses parameters by their name in the network; the others have no values.
    """
    if fused_kernels():
        return
    for name, cell in net.cells_and_names():
        weight = f"{name}.weight"
        if isinstance(cell, Conv2d) and _is_eligible(cell) and (needed is None or needed(weight)):
            cell.fast = WinogradConv(np.asarray(source.read(prefix + weight), np.float32))
            source.release(prefix + weight)


def _is_eligible(conv: Conv2d) -> bool:
    same_size = conv.conv.stride == (1, 1, 1, 1) and tuple(conv.conv.pad) == (1, 1, 1, 1)
    wide = min(conv.weight.shape[:2]) >= LEAST_CHANNELS
    return conv.weight.shape[2:] == (3, 3) and same_size and wide and conv.weight.dtype == ms.float32
