"""The blocks of Stable Diffusion's UNet, in the published names (Rombach et al. 2022).

All have one signature, `block(x, emb, context)`: x is (n, c, h, w), emb (b, e) and context (b, m, c'), where n is a
multiple of b. Images that share their conditioning follow each other.
"""

from mindspore import Tensor, nn, ops

from gm.backend import operators
from gm.networks.attention import CrossAttention
from gm.networks.layers import (
    Conv2d,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
    PointwiseConv,
    SiLU,
    UpsamplingConv,
    from_tokens,
    to_tokens,
)

TRANSFORMER_EPS = 1e-6  # of the GroupNorm before a transformer


class InputConv(Conv2d):
    """The UNet's first convolution."""

    def construct(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h, w)."""
        return super().construct(x)


class Downsample(nn.Cell):
    """A convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def construct(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h/2, w/2), rounded up."""
        return self.op(x)


class Upsample(nn.Cell):
    """Twice the height and width, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsamplingConv(channels, channels)

    def construct(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, 2h, 2w)."""
        return self.conv(x)


class ResBlock(nn.Cell):
    """Two 3x3 convolutions with a residual connection, and the noise level's embedding between them.

    Args:
        channels, out_channels: in and out.
        emb_channels: width of the embedding.
    """

    def __init__(self, channels: int, emb_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.SequentialCell(GroupNorm(channels), SiLU(), Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.SequentialCell(SiLU(), Linear(emb_channels, out_channels))
        # Index 2 is the published network's dropout: its names count it.
        self.out_layers = nn.SequentialCell(
            GroupNorm(out_channels),
            SiLU(),
            nn.Identity(),
            Conv2d(out_channels, out_channels, 3, padding=1, zero_init=True),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else Conv2d(channels, out_channels, 1)

    def construct(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h, w)."""
        h = self.in_layers(x)
        n, channels, height, width = h.shape
        shift = self.emb_layers(emb).astype(h.dtype).reshape(-1, 1, channels, 1, 1)  # b c -> b 1 c 1 1
        h = operators.current.add(h.reshape(shift.shape[0], -1, channels, height, width), shift)
        return self.skip_connection(x) + self.out_layers(h.reshape(n, channels, height, width))


class TransformerBlock(nn.Cell):
    """Self-attention over the pixels of each image, cross-attention to its context, feed-forward."""

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, heads, head_dim)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, heads, head_dim, context_dim)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.norm3 = LayerNorm(dim)

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (n, s, c); context: (b, m, c') -> (n, s, c)."""
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = self.add_context(x, context)
        return x + self.ff(self.norm3(x))

    def add_context(self, x: Tensor, context: Tensor) -> Tensor:
        """The cross-attention with its residual connection."""
        n, s, c = x.shape
        b, m, _ = context.shape
        if m == 1:
            out = operators.current.memoise(self.attn2.single_token, context).reshape(b, 1, 1, c)
            x = operators.current.add(operators.current.reshape(x, (b, n // b, s, c)), out)
            return operators.current.reshape(x, (n, s, c))
        k, v = operators.current.memoise(self.attn2.keys_values, context)
        return x + self.attn2.attend(self.norm2(x), _repeated(k, n // b), _repeated(v, n // b))


def _repeated(x: Tensor, times: int) -> Tensor:
    """Each row for the images that share it: b h m d -> (b times) h m d."""
    b, h, m, d = x.shape
    return x if times == 1 else ops.broadcast_to(x.expand_dims(1), (b, times, h, m, d)).reshape(b * times, h, m, d)


class SpatialTransformer(nn.Cell):
    """Transformer blocks over the pixels of an image, as one residual branch of a UNet level.

    Args:
        channels: of the level.
        heads, head_dim: of every attention.
        context_dim: width of the context's tokens.
        depth: number of blocks.
        linear: whether the layers before and after them are stored as matrices, not as 1x1 convolutions.
    """

    def __init__(
        self, channels: int, heads: int, head_dim: int, context_dim: int, depth: int = 1, linear: bool = True
    ) -> None:
        super().__init__()
        self.inner = heads * head_dim
        projection = Linear if linear else PointwiseConv
        blocks = [TransformerBlock(self.inner, heads, head_dim, context_dim) for _ in range(depth)]
        self.norm = GroupNorm(channels, TRANSFORMER_EPS)
        self.proj_in = projection(channels, self.inner)
        self.transformer_blocks = nn.CellList(blocks)
        self.proj_out = projection(self.inner, channels, zero_init=True)

    def construct(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        tokens = self.tokens(self.proj_in(to_tokens(self.norm(x))), context)  # n c h w -> n (h w) c
        return x + from_tokens(self.proj_out(tokens), x.shape[2], x.shape[3])

    def tokens(self, x: Tensor, context: Tensor) -> Tensor:
        """All blocks: (n, s, c) -> (n, s, c)."""
        for block in self.transformer_blocks:
            x = block(x, context)
        return x
