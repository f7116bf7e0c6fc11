"""Operators on Ascend: fused attention; the rest is MindSpore's own there."""

from typing import Optional

import mindspore as ms
from mindspore import Tensor, ops

from gm.backend.operators import Operators, joined

FLASH_MAX_BATCH = 2048  # of the fused operator
FLASH_DTYPES = (ms.float16, ms.bfloat16)


@ms.jit_class
class AscendOperators(Operators):
    """MindSpore's own operators, and the fused attention in half precision."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """See :meth:`Operators.attention`."""
        if q.dtype not in FLASH_DTYPES or bias is not None:
            return super().attention(q, k, v, bias)
        b, h, n, d = q.shape
        blocks = []
        for first in range(0, b, FLASH_MAX_BATCH):
            rows = slice(first, min(first + FLASH_MAX_BATCH, b))
            blocks.append(
                ops.flash_attention_score(q[rows], k[rows], v[rows], h, input_layout="BNSD", scalar_value=d**-0.5)
            )
        return joined(blocks)
