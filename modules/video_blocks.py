"""The blocks of the video UNet: convolutions and attention in space, then over time (VideoLDM; SVD, appendix D)."""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gm.backend.operators import add_broadcast, add_scaled, constant, mix
from gm.networks.attention import CrossAttention
from gm.networks.layers import (
    Conv2d,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
    SiLU,
    TemporalConv,
    from_tokens,
    sinusoidal_embedding,
    timestep_mlp,
    to_tokens,
)
from modules.frame_layout import channels_first, frames_first, merge_frames, split_frames


class AlphaBlender(nn.Cell):
    """alpha = sigmoid(mix_factor), a learned share; sgm's `learned_with_images` for clips without still images."""

    def __init__(self, mix_factor: float = 0.5) -> None:
        super().__init__()
        self.mix_factor = Parameter(initializer(mix_factor, (1,), ms.float32))

    def construct(self) -> Tensor:
        """alpha, a number in 0..1: shape ()."""
        return ops.sigmoid(self.mix_factor.astype(ms.float32)).reshape(())

class TemporalResidual(nn.Cell):
    """The residual branch of a (3, 1, 1) convolutional block over time.

    Args:
        channels: in and out.
        emb_channels: width of the time embedding; 0 for none (the autoencoder's decoder).
    """

    def __init__(self, channels: int, emb_channels: int = 0, eps: float = 1e-5) -> None:
        super().__init__()
        self.in_layers = nn.SequentialCell(GroupNorm(channels, eps), SiLU(), TemporalConv(channels, channels))
        self.emb_layers = nn.SequentialCell(SiLU(), Linear(emb_channels, channels)) if emb_channels else None
        # Index 2 is the reference's dropout: the published names count it.
        self.out_layers = nn.SequentialCell(
            GroupNorm(channels, eps), SiLU(), nn.Identity(), TemporalConv(channels, channels, zero_init=True)
        )

    def construct(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (b, c, t, h·w); emb: (b, e), or anything where the block has no embedding -> (b, c, t, h·w)."""
        h = self.in_layers(x)
        if self.emb_layers is not None:
            shift = self.emb_layers(emb).astype(h.dtype)
            h = add_broadcast(h, shift.reshape(shift.shape[0], -1, 1, 1))
        return self.out_layers(h)


class VideoResBlock(nn.Cell):
    """A ResNet block on each frame, then one over time, blended.

    With x the spatial result and x + f(x) the temporal one, alpha·x + (1 - alpha)·(x + f(x)) = x + (1 - alpha)·f(x):
    only the branch f changes layout.

    Args:
        channels, out_channels: in and out.
        emb_channels: width of the time embedding.
    """

    def __init__(self, channels: int, emb_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.SequentialCell(GroupNorm(channels), SiLU(), Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.SequentialCell(SiLU(), Linear(emb_channels, out_channels))
        self.out_layers = nn.SequentialCell(
            GroupNorm(out_channels),
            SiLU(),
            nn.Identity(),
            Conv2d(out_channels, out_channels, 3, padding=1, zero_init=True),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else Conv2d(channels, out_channels, 1)
        self.time_stack = TemporalResidual(out_channels, emb_channels)
        self.time_mixer = AlphaBlender()

    def construct(self, x: Tensor, emb: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """x: (b·t, c, h, w); emb: (b, e); context is not used -> (b·t, c', h, w)."""
        h = self.in_layers(x)
        frames, channels, height, width = h.shape
        shift = self.emb_layers(emb).astype(h.dtype).reshape(-1, 1, channels, 1, 1)  # b 1 c 1 1
        h = add_broadcast(h.reshape(-1, num_frames, channels, height, width), shift)
        h = self.out_layers(h.reshape(frames, channels, height, width))
        x = self.skip_connection(x) + h
        temporal = frames_first(self.time_stack(channels_first(x, num_frames), emb), height, width)
        return add_scaled(x, temporal, 1 - self.time_mixer())

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
