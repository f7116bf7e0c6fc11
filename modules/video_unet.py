"""The video UNet of Stable Video Diffusion: Stable Diffusion 2.1's with a temporal layer after each spatial one."""

from functools import partial
from typing import Callable, List, Sequence, Tuple

from mindspore import Tensor, nn, ops

from gm.networks.layers import (
    GROUPS,
    Conv2d,
    GroupNorm,
    SiLU,
    UpsamplingConv,
    set_norm_groups,
    sinusoidal_embedding,
    timestep_mlp,
)
from modules.video_blocks import SpatialVideoTransformer, VideoResBlock

# A parameter is temporal if its path has one of these; the last two are the decoder's.
TEMPORAL_NAMES = ("time_stack", "time_mixer", "time_pos_embed", "mix_factor", "time_mix_conv")


def is_temporal(name: str) -> bool:
    """Whether a parameter of the UNet or of the decoder belongs to a temporal layer."""
    return any(part in TEMPORAL_NAMES for part in name.split("."))


class InputConv(Conv2d):
    """The UNet's first convolution, with a UNet block's signature."""

    def construct(self, x: Tensor, emb: Tensor, context: Tensor, num_frames: int) -> Tensor:
        return super().construct(x)


class Downsample(nn.Cell):
    """A convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def construct(self, x: Tensor, emb: Tensor, context: Tensor, num_frames: int) -> Tensor:
        return self.op(x)


class Upsample(nn.Cell):
    """Twice the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsamplingConv(channels, channels)

    def construct(self, x: Tensor, emb: Tensor, context: Tensor, num_frames: int) -> Tensor:
        return self.conv(x)


class VideoUNet(nn.Cell):
    """Predicts F(c_in·x; c_noise, conditioning) for all frames of a clip together.

    Args:
        in_channels: noisy latent + latent of the conditioning frame (SVD: 8).
        out_channels: of the latent (4).
        model_channels: width of the first level (320).
        num_res_blocks: per level (2).
        channel_mult: width of each level, as a multiple of `model_channels`.
        attention_resolutions: downsampling factors at which there is a transformer.
        num_head_channels: width of an attention head (64).
        transformer_depth: blocks per transformer (1).
        context_dim: width of the cross-attention tokens (1024).
        adm_in_channels: width of the vector conditioning (768).
        num_groups: of every GroupNorm (32).
    """

    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 4,
        model_channels: int = 320,
        num_res_blocks: int = 2,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        attention_resolutions: Sequence[int] = (4, 2, 1),
        num_head_channels: int = 64,
        transformer_depth: int = 1,
        context_dim: int = 1024,
        adm_in_channels: int = 768,
        num_groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.model_channels = model_channels
        emb_channels = model_channels * 4
        self.time_embed = timestep_mlp(model_channels, emb_channels, emb_channels)
        self.label_emb = nn.CellList([timestep_mlp(adm_in_channels, emb_channels, emb_channels)])

        transformer = partial(_transformer, num_head_channels, context_dim, transformer_depth)
        level = partial(_level, emb_channels, transformer, tuple(attention_resolutions))
        widths = [model_channels * mult for mult in channel_mult]
        down, skips = _build_down(in_channels, widths, num_res_blocks, level)
        channels = widths[-1]
        self.input_blocks = nn.CellList(down)
        first, last = (VideoResBlock(channels, emb_channels, channels) for _ in range(2))
        self.middle_block = nn.CellList([first, transformer(channels), last])
        self.output_blocks = nn.CellList(_build_up(skips, widths, num_res_blocks, level))
        self.out = nn.SequentialCell(
            GroupNorm(model_channels), SiLU(), Conv2d(model_channels, out_channels, 3, padding=1, zero_init=True)
        )
        set_norm_groups(self, num_groups)

    def construct(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor, num_frames: int) -> Tensor:
        """One evaluation of the network.

        Args:
            x: (b·t, in_channels, h, w), h and w multiples of 2^(levels - 1).
            c_noise: (b,), the noise level's embedding input, 0.25 ln σ.
            context: (b, n, context_dim).
            vector: (b, adm_in_channels).
            num_frames: t.

        Returns:
            (b·t, out_channels, h, w).
        """
        return self.with_deep_features(x, c_noise, context, vector, num_frames)[0]

    def with_deep_features(
        self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor, num_frames: int
    ) -> Tuple[Tensor, Tensor]:
        """As :meth:`construct`, and what its last stage took from the one before, (b·t, c, h, w)."""
        emb = self._embedding(x, c_noise, vector)
        skips = ()
        for stage in self.input_blocks:
            for block in stage:
                x = block(x, emb, context, num_frames)
            skips += (x,)
        for block in self.middle_block:
            x = block(x, emb, context, num_frames)
        for index in range(len(self.output_blocks) - 1):  # a slice of a CellList would give its parameters other names
            x = ops.cat((x, skips[-1 - index]), axis=1)
            for block in self.output_blocks[index]:
                x = block(x, emb, context, num_frames)
        return self._last_stage(x, skips[0], emb, context, num_frames), x

    def from_deep_features(
        self, deep: Tensor, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor, num_frames: int
    ) -> Tensor:
        """The last stage alone, over the deep features of another noise level (DeepCache, Ma et al. 2024).

        Args:
            deep: from :meth:`with_deep_features`; the others as in :meth:`construct`.
        """
        emb = self._embedding(x, c_noise, vector)
        for block in self.input_blocks[0]:
            x = block(x, emb, context, num_frames)
        return self._last_stage(deep, x, emb, context, num_frames)

    def _last_stage(self, x: Tensor, skip: Tensor, emb: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """From the stage before and the first convolution to the prediction."""
        x = ops.cat((x, skip), axis=1)
        for block in self.output_blocks[-1]:
            x = block(x, emb, context, num_frames)
        return self.out(x)

    def _embedding(self, x: Tensor, c_noise: Tensor, vector: Tensor) -> Tensor:
        """Of the noise level and the vector conditioning, (b, 4·model_channels)."""
        sinusoid = sinusoidal_embedding(c_noise, self.model_channels).astype(x.dtype)
        return self.time_embed(sinusoid) + self.label_emb[0](vector.astype(x.dtype))


def _transformer(head_channels: int, context_dim: int, depth: int, channels: int) -> SpatialVideoTransformer:
    return SpatialVideoTransformer(channels, channels // head_channels, head_channels, context_dim, depth)


def _level(
    emb_channels: int, transformer: Callable, attention_resolutions: Sequence[int], channels: int, out: int, factor: int
) -> List[nn.Cell]:
    """A residual block and, where the level has one, a transformer."""
    blocks: List[nn.Cell] = [VideoResBlock(channels, emb_channels, out)]
    return blocks + ([transformer(out)] if factor in attention_resolutions else [])


def _build_down(in_channels: int, widths: Sequence[int], depth: int, level) -> Tuple[List[nn.CellList], List[int]]:
    """The way down, and the width of each skip connection it leaves."""
    stages, skips = [nn.CellList([InputConv(in_channels, widths[0], 3, padding=1)])], [widths[0]]
    channels = widths[0]
    for index, width in enumerate(widths):
        for _ in range(depth):
            stages.append(nn.CellList(level(channels, width, 2**index)))
            channels = width
            skips.append(width)
        if index < len(widths) - 1:
            stages.append(nn.CellList([Downsample(width)]))
            skips.append(width)
    return stages, skips


def _build_up(skips: Sequence[int], widths: Sequence[int], depth: int, level) -> List[nn.CellList]:
    """The way up: each stage takes the last result and one skip connection."""
    stages, skips, channels = [], list(skips), widths[-1]
    for index, width in reversed(list(enumerate(widths))):
        for position in range(depth + 1):
            blocks = level(channels + skips.pop(), width, 2**index)
            channels = width
            if index > 0 and position == depth:
                blocks.append(Upsample(width))
            stages.append(nn.CellList(blocks))
    return stages
