"""Multi-head attention for the UNet."""

from typing import Optional, Tuple

from mindspore import Tensor, nn

from gm.backend import operators
from gm.networks.layers import Linear


class CrossAttention(nn.Cell):
    """Multi-head attention with projections named as in the published weights (`to_q`, `to_k`, `to_v`, `to_out.0`).

    Self-attention where `context_dim` is None.

    Args:
        query_dim: width of the queries and of the result.
        heads, head_dim: their product is the inner width.
        context_dim: width of the context.
    """

    def __init__(self, query_dim: int, heads: int, head_dim: int, context_dim: Optional[int] = None) -> None:
        super().__init__()
        inner, source = heads * head_dim, context_dim or query_dim
        self.heads, self.head_dim = heads, head_dim
        self.to_q = Linear(query_dim, inner, bias=False)
        self.to_k = Linear(source, inner, bias=False)
        self.to_v = Linear(source, inner, bias=False)
        self.to_out = nn.CellList([Linear(inner, query_dim)])

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (b, n, c); context: (b, m, c') -> (b, n, c)."""
        return self.attend(x, *self.keys_values(context))

    def keys_values(self, context: Tensor) -> Tuple[Tensor, Tensor]:
        """(b, m, c') -> (b, h, m, d), twice."""
        return self.split_heads(self.to_k(context)), self.split_heads(self.to_v(context))

    def attend(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """x: (b, n, c); k, v: (b, h, m, d) -> (b, n, c)."""
        b, n, _ = x.shape
        out = operators.current.attention(self.split_heads(self.to_q(x)), k, v)
        out = operators.current.permute(out, (0, 2, 1, 3))  # b h n d -> b n h d
        return self.to_out[0](operators.current.reshape(out, (b, n, -1)))

    def single_token(self, context: Tensor) -> Tensor:
        """Attention over one token, which is the same for any query, since softmax is 1: (b, 1, c') -> (b, 1, c)."""
        return self.to_out[0](self.to_v(context))

    def split_heads(self, x: Tensor) -> Tensor:
        """b n (h d) -> b h n d."""
        b, n, _ = x.shape
        return operators.current.permute(operators.current.reshape(x, (b, n, self.heads, self.head_dim)), (0, 2, 1, 3))
