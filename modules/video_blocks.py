"""The blocks of the video UNet: the UNet's in space, then convolutions and attention over time (VideoLDM; SVD, D).

Frames are images that share their conditioning: of x (b·t, c, h, w) with emb (b, e) and context (b, m, c') there are t.
"""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gm.backend import operators
from gm.networks.attention import CrossAttention
from gm.networks.blocks import ResBlock, SpatialTransformer
from gm.networks.layers import (
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
    SiLU,
    TemporalConv,
    indices,
    sinusoidal_embedding,
    timestep_mlp,
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
            h = operators.current.add(h, shift.reshape(shift.shape[0], -1, 1, 1))
        return self.out_layers(h)


class VideoResBlock(ResBlock):
    """A ResNet block on each frame, then one over time, blended.

    With x the spatial result and x + f(x) the temporal one, alpha·x + (1 - alpha)·(x + f(x)) = x + (1 - alpha)·f(x):
    only the branch f changes layout.
    """

    def __init__(self, channels: int, emb_channels: int, out_channels: int) -> None:
        super().__init__(channels, emb_channels, out_channels)
        self.time_stack = TemporalResidual(out_channels, emb_channels)
        self.time_mixer = AlphaBlender()

    def construct(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """(b·t, c, h, w) -> (b·t, c', h, w)."""
        x = super().construct(x, emb, context)
        clips = channels_first(x, x.shape[0] // emb.shape[0])
        branch = frames_first(self.time_stack(clips, emb), x.shape[2], x.shape[3])
        return operators.current.add_scaled(x, branch, 1 - self.time_mixer())


class TemporalAttention(CrossAttention):
    """Self-attention along axis 1 of (b, t, s, c), for each s by itself."""

    def construct(self, x: Tensor) -> Tensor:
        """(b, t, s, c) -> (b, t, s, c)."""
        b, t, s, _ = x.shape
        q, k, v = self.frames_last(self.to_q(x)), self.frames_last(self.to_k(x)), self.frames_last(self.to_v(x))
        out = operators.current.attention(q, k, v)
        out = operators.current.reshape(out, (b, s, self.heads, t, self.head_dim))
        out = operators.current.permute(out, (0, 3, 1, 2, 4))  # b s h t d -> b t s h d
        return self.to_out[0](operators.current.reshape(out, (b, t, s, -1)))

    def frames_last(self, x: Tensor) -> Tensor:
        """b t s (h d) -> (b s) h t d."""
        b, t, s, _ = x.shape
        x = operators.current.reshape(x, (b, t, s, self.heads, self.head_dim))
        x = operators.current.permute(x, (0, 2, 3, 1, 4))
        return operators.current.reshape(x, (b * s, self.heads, t, self.head_dim))


class TemporalBlock(nn.Cell):
    """Feed-forward, self-attention over the frames of each pixel, cross-attention, feed-forward.

    Tokens stay in the order b t s c throughout; only the heads of the self-attention are rearranged.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        self.norm_in = LayerNorm(dim)
        self.ff_in = FeedForward(dim)
        self.attn1 = TemporalAttention(dim, heads, head_dim)
        self.ff = FeedForward(dim)
        self.norm2 = LayerNorm(dim)
        self.attn2 = CrossAttention(dim, heads, head_dim, context_dim)
        self.norm1 = LayerNorm(dim)
        self.norm3 = LayerNorm(dim)

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (b, t, s, c); context: (b, m, c'), the first frame's -> (b, t, s, c)."""
        x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        x = self.add_context(x, context)
        return x + self.ff(self.norm3(x))

    def add_context(self, x: Tensor, context: Tensor) -> Tensor:
        """The cross-attention with its residual connection."""
        b, t, s, c = x.shape
        if context.shape[1] == 1:
            out = operators.current.memoise(self.attn2.single_token, context)
            return operators.current.add(x, out.reshape(b, 1, 1, c))
        return x + self.attn2(self.norm2(x).reshape(b, t * s, c), context).reshape(b, t, s, c)


class SpatialVideoTransformer(SpatialTransformer):
    """Spatial and temporal transformer blocks in turn, as one residual branch of a UNet level.

    Args:
        channels: of the level.
        heads, head_dim: of every attention.
        context_dim: width of the conditioning tokens.
        depth: number of spatial and of temporal blocks.
        linear: as in the parent class.
    """

    def __init__(
        self, channels: int, heads: int, head_dim: int, context_dim: int, depth: int = 1, linear: bool = True
    ) -> None:
        super().__init__(channels, heads, head_dim, context_dim, depth, linear)
        inner = self.inner
        self.time_stack = nn.CellList([TemporalBlock(inner, heads, head_dim, context_dim) for _ in range(depth)])
        self.time_pos_embed = timestep_mlp(inner, inner * 4, inner)
        self.time_mixer = AlphaBlender()

    def tokens(self, x: Tensor, context: Tensor) -> Tensor:
        """All blocks: (b·t, s, c) -> (b·t, s, c)."""
        num_frames = x.shape[0] // context.shape[0]
        position = operators.current.memoise(self.positions, num_frames, x.dtype)
        alpha = self.time_mixer()
        for index in range(len(self.transformer_blocks)):
            spatial = split_frames(self.transformer_blocks[index](x, context), num_frames)  # b t s c
            placed = operators.current.add(spatial, position.astype(spatial.dtype))
            temporal = self.time_stack[index](placed, context)
            x = merge_frames(operators.current.lerp(temporal, spatial, alpha))
        return x

    def positions(self, num_frames: int, dtype: ms.Type) -> Tensor:
        """What is added to the tokens of each frame: (1, t, 1, c)."""
        sinusoid = sinusoidal_embedding(indices(num_frames), self.inner).astype(dtype)
        return self.time_pos_embed(sinusoid).reshape(1, num_frames, 1, -1)  # t c -> 1 t 1 c
