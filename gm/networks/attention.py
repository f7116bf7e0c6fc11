"""Scaled dot-product attention for the UNet, the autoencoder and CLIP alike."""

from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.backend import operators as kernels
from gm.networks.layers import Linear

SCORES_BUDGET = 1 << 26  # bytes: the largest block of attention scores that is ever held
FLASH_MAX_BATCH = 2048  # of Ascend's fused operator
FLASH_DTYPES = (ms.float16, ms.bfloat16)


class Attention(nn.Cell):
    """softmax(q kᵀ / √d) v, over batches of heads, without ever holding all scores at once.

    On Ascend, in half precision, the fused operator is used. Elsewhere the product runs over blocks of heads and, if
    one head's scores exceed the budget, of queries; softmax and its sum are in fp32.

    Args:
        scores_budget: bytes of the largest block of scores.
    """

    def __init__(self, scores_budget: int = SCORES_BUDGET) -> None:
        super().__init__()
        self.scores_budget = scores_budget
        self.fused = kernels.has_fused_operators()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.values = ops.BatchMatMul()
        self.softmax = ops.Softmax(axis=-1)

    def construct(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (b, h, n, d); k, v: (b, h, m, d) -> (b, h, n, d)."""
        if self.fused and q.dtype in FLASH_DTYPES:
            return self.flash(q, k, v)
        b, h, n, d = q.shape
        m = k.shape[2]
        q = kernels.reshape(q * (d**-0.5), (b * h, n, d))
        k, v = kernels.reshape(k, (b * h, m, d)), kernels.reshape(v, (b * h, m, d))
        heads = max(1, self.scores_budget // (n * m * 4))
        queries = n if heads > 1 else max(1, min(n, self.scores_budget // (m * 4)))
        blocks = []
        for first in range(0, b * h, heads):
            q_block = kernels.part(q, first, heads)
            k_block, v_block = kernels.part(k, first, heads), kernels.part(v, first, heads)
            if queries == n:
                blocks.append(self.block(q_block, k_block, v_block))
                continue
            rows = []
            for start in range(0, n, queries):
                rows.append(self.block(q_block[:, start : min(start + queries, n)], k_block, v_block))
            blocks.append(ops.cat(rows, axis=1))
        return kernels.reshape(kernels.joined(blocks, 0), (b, h, n, d))

    def block(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.softmax(self.scores(q, k).astype(ms.float32))  # bh n m
        return self.values(weights.astype(v.dtype), v)

    def flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, h, n, d = q.shape
        blocks = []
        for first in range(0, b, FLASH_MAX_BATCH):
            part = slice(first, min(first + FLASH_MAX_BATCH, b))
            blocks.append(
                ops.flash_attention_score(q[part], k[part], v[part], h, input_layout="BNSD", scalar_value=d**-0.5)
            )
        return kernels.joined(blocks, 0)


class CrossAttention(nn.Cell):
    """Multi-head attention with projections named as in the published weights (`to_q`, `to_k`, `to_v`, `to_out.0`).

    Self-attention where `context_dim` is None. Over a single context token softmax is 1 whatever the query, so the
    result is `to_out(to_v(context))` for every query: computed once and returned with a token axis of 1.

    Args:
        query_dim: width of the queries and of the result.
        heads, head_dim: their product is the inner width.
        context_dim: width of the context.
        zero_init: start as the zero map.
    """

    def __init__(
        self, query_dim: int, heads: int, head_dim: int, context_dim: Optional[int] = None, zero_init: bool = False
    ) -> None:
        super().__init__()
        inner, source = heads * head_dim, context_dim or query_dim
        self.heads, self.head_dim = heads, head_dim
        self.to_q = Linear(query_dim, inner, bias=False)
        self.to_k = Linear(source, inner, bias=False)
        self.to_v = Linear(source, inner, bias=False)
        self.to_out = nn.CellList([Linear(inner, query_dim, zero_init=zero_init)])
        self.attention = Attention()

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (b, n, c); context: (b, m, c') -> (b, n, c)."""
        b, n, _ = x.shape
        q, k, v = self.split_heads(self.to_q(x)), self.split_heads(self.to_k(context)), self.to_v(context)
        out = self.attention(q, k, self.split_heads(v))
        return self.to_out[0](kernels.reshape(kernels.swap_axes(out, 1, 2), (b, n, -1)))  # b h n d -> b n (h d)

    def over_time(self, x: Tensor) -> Tensor:
        """Self-attention along axis 1 of (b, t, s, c), for each s by itself."""
        b, t, s, _ = x.shape
        q, k, v = self.frames_last(self.to_q(x)), self.frames_last(self.to_k(x)), self.frames_last(self.to_v(x))
        out = kernels.reshape(self.attention(q, k, v), (b, s, self.heads, t, self.head_dim))
        out = kernels.rows_permuted(out, (0, 3, 1, 2, 4))  # b s h t d -> b t s h d
        return self.to_out[0](kernels.reshape(out, (b, t, s, -1)))

    def single_token(self, context: Tensor) -> Tensor:
        """Attention of any queries over one token: (b, 1, c') -> (b, 1, c)."""
        return self.to_out[0](self.to_v(context))

    def split_heads(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return kernels.swap_axes(kernels.reshape(x, (b, n, self.heads, self.head_dim)), 1, 2)  # b n (h d) -> b h n d

    def frames_last(self, x: Tensor) -> Tensor:
        b, t, s, _ = x.shape
        x = kernels.reshape(x, (b, t, s, self.heads, self.head_dim))
        x = kernels.rows_permuted(x, (0, 2, 3, 1, 4))  # b t s (h d) -> b s h t d
        return kernels.reshape(x, (b * s, self.heads, t, self.head_dim))
