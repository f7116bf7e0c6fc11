"""Operators on Ascend: CANN's newer kernels (aclnn), which `mindspore.mint` reaches, and the fused attention.

Much of `mindspore.ops` and `nn` reaches older ones (aclop), which CANN compiles online for each shape. Nothing here was
run on a card. The dry run (svd_tools/ascend_dry_run.py) shows that networks hold no kernels of the older kind, but for
what it lists, and keep within the limits that CANN documents.
"""

import os
from typing import Optional, Sequence, Tuple

import mindspore as ms
from mindspore import Tensor, mint, ops

from gm.backend.operators import NO_PADDING, Operators, Padding

PLAIN_ATTENTION = "SVD_PLAIN_ATTENTION"  # set to 1, there is no fused attention: should it be what is wrong on a card
FLASH_DTYPES = (ms.float16, ms.bfloat16)
FLASH_HEADS, FLASH_HEAD_DIM, FLASH_HEAD_UNIT = 256, 512, 16  # at most, at most, a multiple of it
LEAST_EPS = 1e-5  # CANN's GroupNorm promises its accuracy from here on
WIDEST = 4096  # of a convolution's picture


@ms.jit_class
class AscendOperators(Operators):
    """CANN's own kernels of each operator; half precision is widened inside those of the activations."""

    scores_budget = 1 << 30
    batch_bytes = 1 << 31
    most_decoded = 1 << 30  # numbers in the decoder's largest activation: 7 frames of 576x1024, planned with 11 GB

    def __init__(self) -> None:
        self.fused_attention = os.environ.get(PLAIN_ATTENTION, "0") != "1"

    def images_at_once(self, count: int, numbers: int) -> int:
        """See :meth:`Operators.images_at_once`."""
        return max(1, min(count, self.most_decoded // numbers))

    def linear(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        """See :meth:`Operators.linear`."""
        return mint.nn.functional.linear(x, weight, like(bias, x))

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`Operators.geglu`."""
        hidden, gate = self.halves(self.linear(x, weight, bias), -1)
        return hidden * self.gelu(gate)

    def conv2d(
        self,
        direct: ops.Conv2D,
        x: Tensor,
        weight: Tensor,
        bias: Optional[Tensor],
        stride: int = 1,
        padding: Padding = NO_PADDING,
    ) -> Tensor:
        """See :meth:`Operators.conv2d`."""
        top, bottom, left, right = padding
        if top != bottom or left != right:
            x = mint.nn.functional.pad(x, (left, right, top, bottom))
            top, left = 0, 0
        return mint.nn.functional.conv2d(x, weight, like(bias, x), stride, (top, left))

    def conv2d_doubled(self, direct: ops.Conv2D, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`Operators.conv2d_doubled`."""
        doubled = mint.nn.functional.interpolate(x, scale_factor=(2.0, 2.0), mode="nearest")
        return mint.nn.functional.conv2d(doubled, weight, like(bias, x), 1, (1, 1))

    def conv_over_time(self, direct: ops.Conv2D, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`Operators.conv_over_time`: a convolution of volumes of pictures no wider than CANN takes."""
        b, c, t, n = x.shape
        width = picture_width(n)
        volumes = x.reshape(b, c, t, n // width, width)
        return mint.nn.functional.conv3d(volumes, weight, like(bias, x), 1, (1, 0, 0)).reshape(b, -1, t, n)

    def add_bias(self, y: Tensor, bias: Optional[Tensor]) -> Tensor:
        """See :meth:`Operators.add_bias`."""
        return y if bias is None else y + like(bias, y).reshape((1, -1) + (1,) * (y.ndim - 2))

    def group_norm(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See :meth:`Operators.group_norm`: s·x has the same result as x for s²·ε in place of ε."""
        x32, weight, bias = x.astype(ms.float32), weight.astype(ms.float32), bias.astype(ms.float32)
        if eps < LEAST_EPS:
            x32, eps = x32 * (LEAST_EPS / eps) ** 0.5, LEAST_EPS
        return mint.nn.functional.group_norm(x32, groups, weight, bias, eps).astype(x.dtype)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See :meth:`Operators.layer_norm`: CANN takes fp32 weights with any x, and computes in fp32."""
        return mint.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def silu(self, x: Tensor) -> Tensor:
        """See :meth:`Operators.silu`."""
        return mint.nn.functional.silu(x)

    def gelu(self, x: Tensor) -> Tensor:
        """See :meth:`Operators.gelu`."""
        return mint.nn.functional.gelu(x)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """See :meth:`Operators.attention`."""
        h, d = q.shape[1], q.shape[3]
        fits = h <= FLASH_HEADS and d <= FLASH_HEAD_DIM and d % FLASH_HEAD_UNIT == 0
        if self.fused_attention and q.dtype in FLASH_DTYPES and fits and bias is None:
            return ops.flash_attention_score(q, k, v, h, input_layout="BNSD", scalar_value=d**-0.5)
        return super().attention(q, k, v, bias)

    def halves(self, x: Tensor, axis: int) -> Tuple[Tensor, Tensor]:
        """See :meth:`Operators.halves`: views."""
        return mint.chunk(x, 2, axis)

    def entry(self, x: Tensor, axis: int, index: int) -> Tensor:
        """See :meth:`Operators.entry`: a view."""
        return mint.select(x, axis, index)

    def narrow(self, x: Tensor, axis: int, start: int, length: int) -> Tensor:
        """See :meth:`Operators.narrow`: a view."""
        return x if length >= x.shape[axis] else mint.narrow(x, axis, start, min(length, x.shape[axis] - start))

    def mean(self, x: Tensor, axis: Optional[int] = None) -> Tensor:
        """See :meth:`Operators.mean`."""
        return mint.mean(x) if axis is None else mint.mean(x, axis)

    def stack(self, numbers: Sequence[Tensor]) -> Tensor:
        """See :meth:`Operators.stack`."""
        return mint.stack(numbers)

    def move_average(self, average, parameter, rate):
        """See :meth:`Operators.move_average`."""
        return ops.assign(average, mint.lerp(average, parameter, rate))

    def square_sum(self, tensor):
        """See :meth:`Operators.square_sum`."""
        return mint.sum(mint.square(tensor))


def like(values: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    """In the type of x: CANN's kernels take one type of all their operands."""
    return None if values is None else values.astype(x.dtype)


@ops.constexpr
def picture_width(pixels: int) -> int:
    """The largest power of two that divides a number of pixels, up to :data:`WIDEST`."""
    return min(pixels & -pixels, WIDEST)
