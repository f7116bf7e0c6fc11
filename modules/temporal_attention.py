"""The transformer of a UNet level: spatial attention, then attention over time, blended (VideoLDM; SVD, appendix D)."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.attention import CrossAttention
from gm.device.kernels import add_broadcast, constant, mix
from gm.layers import FeedForward, GroupNorm, LayerNorm, Linear, sinusoidal_embedding, timestep_mlp
from gm.tokens import from_tokens, to_tokens
from modules.blend import AlphaBlender
from modules.layout import merge_frames, split_frames


class SpatialBlock(nn.Cell):
    """Self-attention over the pixels of each frame, cross-attention to the image's token, feed-forward."""

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, heads, head_dim)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, heads, head_dim, context_dim)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.norm3 = LayerNorm(dim)

    def construct(self, x: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """x: (b·t, s, c); context: (b, n, c') -> (b·t, s, c)."""
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = self.add_context(x, context, num_frames)
        return x + self.ff(self.norm3(x))

    def add_context(self, x: Tensor, context: Tensor, num_frames: int) -> Tensor:
        b, n, c = context.shape
        if n == 1:
            out = constant(self.attn2.single_token, context).reshape(b, 1, 1, x.shape[-1])
            return merge_frames(add_broadcast(split_frames(x, num_frames), out))
        context = merge_frames(ops.broadcast_to(context.reshape(b, 1, n, c), (b, num_frames, n, c)))
        return x + self.attn2(self.norm2(x), context)


class TemporalBlock(nn.Cell):
    """Feed-forward, self-attention over the frames of each pixel, cross-attention, feed-forward.

    Tokens stay in the order b t s c throughout; only the heads of the self-attention are rearranged.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        self.norm_in = LayerNorm(dim)
        self.ff_in = FeedForward(dim)
        self.attn1 = CrossAttention(dim, heads, head_dim)
        self.ff = FeedForward(dim)
        self.norm2 = LayerNorm(dim)
        self.attn2 = CrossAttention(dim, heads, head_dim, context_dim)
        self.norm1 = LayerNorm(dim)
        self.norm3 = LayerNorm(dim)

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (b, t, s, c); context: (b, n, c'), the first frame's -> (b, t, s, c)."""
        x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1.over_time(self.norm1(x))
        x = self.add_context(x, context)
        return x + self.ff(self.norm3(x))

    def add_context(self, x: Tensor, context: Tensor) -> Tensor:
        b, t, s, c = x.shape
        if context.shape[1] == 1:
            return add_broadcast(x, constant(self.attn2.single_token, context).reshape(b, 1, 1, c))
        return x + self.attn2(self.norm2(x).reshape(b, t * s, c), context).reshape(b, t, s, c)


class SpatialVideoTransformer(nn.Cell):
    """Spatial and temporal transformer blocks in turn, as one residual branch of a UNet level.

    Args:
        channels: of the level.
        heads, head_dim: of every attention.
        context_dim: width of the conditioning tokens.
        depth: number of spatial and of temporal blocks.
    """

    def __init__(self, channels: int, heads: int, head_dim: int, context_dim: int, depth: int = 1) -> None:
        super().__init__()
        inner = heads * head_dim
        self.inner = inner
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = Linear(channels, inner)
        self.transformer_blocks = nn.CellList([SpatialBlock(inner, heads, head_dim, context_dim) for _ in range(depth)])
        self.proj_out = Linear(inner, channels, zero_init=True)
        self.time_stack = nn.CellList([TemporalBlock(inner, heads, head_dim, context_dim) for _ in range(depth)])
        self.time_pos_embed = timestep_mlp(inner, inner * 4, inner)
        self.time_mixer = AlphaBlender()

    def construct(self, x: Tensor, emb: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """x: (b·t, c, h, w); emb is not used; context: (b, n, c') -> (b·t, c, h, w)."""
        height, width = x.shape[2:]
        position = constant(self.positions, num_frames, x.dtype)
        alpha = self.time_mixer()

        h = self.proj_in(to_tokens(self.norm(x)))  # (b t) s c
        for index in range(len(self.transformer_blocks)):
            spatial = self.transformer_blocks[index](h, context, num_frames)
            spatial = split_frames(spatial, num_frames)  # b t s c
            temporal = self.time_stack[index](add_broadcast(spatial, position.astype(spatial.dtype)), context)
            h = merge_frames(mix(spatial, temporal, alpha))
        return x + from_tokens(self.proj_out(h), height, width)

    def positions(self, num_frames: int, dtype: ms.Type) -> Tensor:
        """What is added to the tokens of each frame: (1, t, 1, c)."""
        sinusoid = sinusoidal_embedding(ops.arange(num_frames), self.inner).astype(dtype)
        return self.time_pos_embed(sinusoid).reshape(1, num_frames, 1, -1)  # t c -> 1 t 1 c
