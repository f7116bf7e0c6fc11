"""The towers of CLIP (Radford et al. 2021) and OpenCLIP (Ilharco et al. 2021), in the published names."""

from typing import Optional, Tuple

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal, initializer

from gm.backend import operators
from gm.networks.layers import Conv2d, LayerNorm, Linear, in_type, to_tokens
from gm.networks.tokenizer import TEXT_CONTEXT

VOCABULARY = 49408  # tokens that a text tower knows


def _normal(*shape: int) -> Parameter:
    return Parameter(initializer(Normal(shape[-1] ** -0.5), shape, mstype.float32))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Attention whose heads are joined again: b h n d, three times -> b n (h d)."""
    b, h, n, d = q.shape
    out = operators.current.permute(operators.current.attention(q, k, v, bias), (0, 2, 1, 3))
    return operators.current.reshape(out, (b, n, h * d))


class SelfAttention(nn.Cell):
    """Multi-head self-attention with q, k and v in one matrix, as in `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = _normal(3 * width, width)
        self.in_proj_bias = Parameter(initializer("zeros", (3 * width,), mstype.float32))
        self.out_proj = Linear(width, width)
        self.compute_dtype = None

    def construct(self, x: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """x: (b, n, c); bias: what is added to the scores, (n, n) -> (b, n, c)."""
        b, n, c = x.shape
        x, weight = in_type(self.compute_dtype, x, self.in_proj_weight)
        qkv = operators.current.linear(x, weight, self.in_proj_bias)
        qkv = operators.current.reshape(qkv, (b, n, 3, self.heads, c // self.heads))
        qkv = operators.current.permute(qkv, (2, 0, 3, 1, 4))  # b n 3 h d -> 3 b h n d
        q, k, v = [operators.current.entry(qkv, 0, index) for index in range(3)]
        return self.out_proj(attend(q, k, v, bias))


class MLP(nn.Cell):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = Linear(width, hidden)
        self.c_proj = Linear(hidden, width)

    def construct(self, x: Tensor) -> Tensor:
        return self.c_proj(operators.current.gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Cell):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width, mlp_width)

    def construct(self, x: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), bias)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Cell):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.resblocks = nn.CellList([ResidualAttentionBlock(width, heads, mlp_width) for _ in range(layers)])

    def construct(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class VisionTransformer(nn.Cell):
    """Pictures to one embedding each.

    Args:
        image_size: pixels of the square input (224).
        patch_size: pixels of a square patch (14).
        width, layers, heads: of the transformer (1280, 32, 16).
        mlp_width: of its MLPs (5120).
        output_dim: of the embedding (1024).
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 14,
        width: int = 1280,
        layers: int = 32,
        heads: int = 16,
        mlp_width: int = 5120,
        output_dim: int = 1024,
    ) -> None:
        super().__init__()
        self.image_size, self.output_dim = image_size, output_dim
        self.class_embedding = _normal(width)
        self.positional_embedding = _normal((image_size // patch_size) ** 2 + 1, width)
        self.proj = _normal(width, output_dim)
        self.conv1 = Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_width)
        self.ln_post = LayerNorm(width)

    def construct(self, x: Tensor) -> Tensor:
        """(b, 3, image_size, image_size), normalised -> (b, output_dim)."""
        x = self.conv1(x)
        b, c = x.shape[:2]
        x = to_tokens(x)  # b c h w -> b (h w) c
        first = ops.broadcast_to(self.class_embedding.astype(x.dtype).reshape(1, 1, c), (b, 1, c))
        x = ops.cat((first, x), axis=1)
        x = self.ln_pre(operators.current.add(x, self.positional_embedding.astype(x.dtype).expand_dims(0)))
        x = self.transformer(x)
        return ops.matmul(self.ln_post(operators.current.entry(x, 1, 0)), self.proj.astype(x.dtype))


class OpenCLIP(nn.Cell):
    """The image tower, beside the text tower's leftovers that the published file carries and nothing uses.

    Args:
        visual: the image tower.
        vocab_size: tokens of the text tower's embedding; 0 leaves the leftovers out.
        text_width: of the text tower.
    """

    def __init__(self, visual: VisionTransformer, vocab_size: int = VOCABULARY, text_width: int = 1024) -> None:
        super().__init__()
        self.visual = visual
        if vocab_size:
            _add_text_ends(self, vocab_size, text_width, visual.output_dim)

    def construct(self, x: Tensor) -> Tensor:
        return self.visual(x)


class OpenCLIPText(nn.Cell):
    """The text tower.

    Args:
        vocab_size: tokens that it knows.
        width, layers, heads: of the transformer (ViT-H: 1024, 24, 16; ViT-bigG: 1280, 32, 20).
        mlp_width: of its MLPs (four times the width).
        output_dim: of the embedding of a whole text.
    """

    def __init__(
        self,
        vocab_size: int = VOCABULARY,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
        mlp_width: int = 4096,
        output_dim: int = 1024,
    ) -> None:
        super().__init__()
        self.width = width
        self.transformer = Transformer(width, layers, heads, mlp_width)
        _add_text_ends(self, vocab_size, width, output_dim)
        self.bias = causal_bias(TEXT_CONTEXT)

    def construct(self, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """(b, 77) -> what the last block takes and gives, (b, 77, c) twice."""
        x = operators.current.add(self.token_embedding(tokens), self.positional_embedding.expand_dims(0))
        return last_two(self.transformer.resblocks, x, self.bias)

    def pooled(self, x: Tensor, ends: Tensor) -> Tensor:
        """The embedding of whole texts, from what the last block gives at their ends: (b, 77, c), (b,) -> (b, c')."""
        return ops.matmul(self.ln_final(x)[ops.arange(x.shape[0]), ends], self.text_projection)


def _add_text_ends(cell: nn.Cell, vocab_size: int, width: int, output_dim: int) -> None:
    """Gives a cell the parameters before and after the text tower's transformer."""
    cell.positional_embedding = _normal(TEXT_CONTEXT, width)
    cell.text_projection = _normal(width, output_dim)
    cell.logit_scale = Parameter(initializer("zeros", (), mstype.float32))
    cell.token_embedding = Embedding(vocab_size, width)
    cell.ln_final = LayerNorm(width)


class Embedding(nn.Cell):
    """A table with a row for each token."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = _normal(vocab_size, width)

    def construct(self, tokens: Tensor) -> Tensor:
        """(b, n) -> (b, n, c)."""
        return ops.gather(self.weight, tokens, 0)


def causal_bias(n: int) -> Tensor:
    """What, added to attention's scores, hides each token's successors: (n, n)."""
    return Tensor(np.triu(np.full((n, n), -np.inf, np.float32), 1))


def last_two(blocks: nn.CellList, x: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor]:
    """What the last of some blocks takes and gives."""
    before = x
    for block in blocks:
        before = x
        x = block(x, bias)
    return before, x
