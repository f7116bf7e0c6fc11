"""The text tower of OpenAI's CLIP ViT-L/14 in transformers' names, as Stable Diffusion 1.5 and XL publish it."""

from typing import Optional, Tuple

from mindspore import Tensor, nn

from gm.backend import operators
from gm.networks.clip import VOCABULARY, Embedding, attend, causal_bias, last_two
from gm.networks.layers import LayerNorm, Linear
from gm.networks.tokenizer import TEXT_CONTEXT

QUICK_GELU = 1.702  # OpenAI's approximation of GELU is x·sigmoid(1.702 x), which is silu(1.702 x) / 1.702


class CLIPAttention(nn.Cell):
    """Multi-head self-attention with a matrix each for q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj = Linear(width, width), Linear(width, width), Linear(width, width)
        self.out_proj = Linear(width, width)

    def construct(self, x: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """x: (b, n, c); bias: what is added to the scores, (n, n) -> (b, n, c)."""
        q, k, v = self.split_heads(self.q_proj(x)), self.split_heads(self.k_proj(x)), self.split_heads(self.v_proj(x))
        return self.out_proj(attend(q, k, v, bias))

    def split_heads(self, x: Tensor) -> Tensor:
        """b n (h d) -> b h n d."""
        b, n, c = x.shape
        x = operators.current.reshape(x, (b, n, self.heads, c // self.heads))
        return operators.current.permute(x, (0, 2, 1, 3))


class CLIPMLP(nn.Cell):
    """Linear, OpenAI's GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(operators.current.silu(self.fc1(x) * QUICK_GELU) * (1 / QUICK_GELU))


class CLIPEncoderLayer(nn.Cell):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(width)
        self.self_attn = CLIPAttention(width, heads)
        self.layer_norm2 = LayerNorm(width)
        self.mlp = CLIPMLP(width, mlp_width)

    def construct(self, x: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Cell):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.layers = nn.CellList([CLIPEncoderLayer(width, heads, mlp_width) for _ in range(layers)])


class CLIPTextEmbeddings(nn.Cell):
    """What each token is, and where it stands."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.token_embedding = Embedding(vocab_size, width)
        self.position_embedding = Embedding(TEXT_CONTEXT, width)

    def construct(self, tokens: Tensor) -> Tensor:
        """(b, 77) -> (b, 77, c)."""
        return operators.current.add(self.token_embedding(tokens), self.position_embedding.weight.expand_dims(0))


class CLIPTextTransformer(nn.Cell):
    """Tokens to the hidden states of the last two blocks."""

    def __init__(self, vocab_size: int, width: int, layers: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(vocab_size, width)
        self.encoder = CLIPEncoder(width, layers, heads, mlp_width)
        self.final_layer_norm = LayerNorm(width)
        self.bias = causal_bias(TEXT_CONTEXT)

    def construct(self, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """(b, 77) -> what the last block takes and gives, (b, 77, c) twice."""
        return last_two(self.encoder.layers, self.embeddings(tokens), self.bias)


class CLIPTextModel(nn.Cell):
    """The text tower.

    Args:
        vocab_size: tokens that it knows.
        width, layers, heads: of the transformer (768, 12, 12).
        mlp_width: of its MLPs (3072).
    """

    def __init__(
        self, vocab_size: int = VOCABULARY, width: int = 768, layers: int = 12, heads: int = 12, mlp_width: int = 3072
    ) -> None:
        super().__init__()
        self.width = width
        self.text_model = CLIPTextTransformer(vocab_size, width, layers, heads, mlp_width)

    def construct(self, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """As :meth:`CLIPTextTransformer.construct`."""
        return self.text_model(tokens)
