"""The UNet of Stable Diffusion (Rombach et al. 2022), in the published names."""

from functools import partial
from typing import Callable, List, Mapping, Optional, Sequence, Tuple, Union

from mindspore import Tensor, nn, ops

from gm.errors import UserError
from gm.networks.blocks import Downsample, InputConv, ResBlock, SpatialTransformer, Upsample
from gm.networks.layers import (
    GROUPS,
    Conv2d,
    GroupNorm,
    SiLU,
    set_norm_groups,
    sinusoidal_embedding,
    timestep_mlp,
)


class UNet(nn.Cell):
    """Predicts F(c_in·x; c_noise, conditioning).

    Args:
        in_channels: of the noisy latent and of what is concatenated to it (SVD: 8)
        out_channels: of the latent (4).
        model_channels: width of the first level (320).
        num_res_blocks: per level (2).
        channel_mult: width of each level, as a multiple of `model_channels`.
        attention_resolutions: downsampling factors at which there is a transformer.
        num_head_channels: width of an attention head (64).
        num_heads: of every attention, whatever its width; 0: as many as heads of `num_head_channels` fit.
        transformer_depth: blocks per transformer: one number, or each level's, of which the middle has the last.
        context_dim: width of the cross-attention's tokens (1024).
        adm_in_channels: width of the vector conditioning; 0: there is none.
        use_linear_in_transformer: see :class:`gm.networks.blocks.SpatialTransformer`.
        num_groups: of every GroupNorm (32).
    """

    res_block: Callable[..., nn.Cell] = ResBlock
    transformer: Callable[..., nn.Cell] = SpatialTransformer

    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 4,
        model_channels: int = 320,
        num_res_blocks: int = 2,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        attention_resolutions: Sequence[int] = (4, 2, 1),
        num_head_channels: int = 64,
        num_heads: int = 0,
        transformer_depth: Union[int, Sequence[int]] = 1,
        context_dim: int = 1024,
        adm_in_channels: int = 768,
        use_linear_in_transformer: bool = True,
        num_groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.model_channels = in_channels, out_channels, model_channels
        emb_channels = model_channels * 4
        self.time_embed = timestep_mlp(model_channels, emb_channels, emb_channels)
        self.has_vector = adm_in_channels > 0
        if self.has_vector:
            self.label_emb = nn.CellList([timestep_mlp(adm_in_channels, emb_channels, emb_channels)])

        res_block = partial(_res_block, type(self).res_block, emb_channels)
        widths = [model_channels * mult for mult in channel_mult]
        depths = [transformer_depth] * len(widths) if isinstance(transformer_depth, int) else list(transformer_depth)
        if len(depths) != len(widths):
            raise UserError(f"transformer_depth={depths} has not one number for each of the {len(widths)} levels")
        heads = partial(_heads, num_heads, num_head_channels)
        transformer = partial(_transformer, type(self).transformer, heads, context_dim, use_linear_in_transformer)
        factors = {2**index: depth for index, depth in enumerate(depths) if 2**index in attention_resolutions}
        level = partial(_level, res_block, transformer, factors)
        down, skips = _build_down(in_channels, widths, num_res_blocks, level)
        channels = widths[-1]
        self.input_blocks = nn.CellList(down)
        self.middle_block = nn.CellList(
            [res_block(channels, channels), transformer(channels, depths[-1]), res_block(channels, channels)]
        )
        self.output_blocks = nn.CellList(_build_up(skips, widths, num_res_blocks, level))
        self.out = nn.SequentialCell(
            GroupNorm(model_channels), SiLU(), Conv2d(model_channels, out_channels, 3, padding=1, zero_init=True)
        )
        set_norm_groups(self, num_groups)

    def construct(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Optional[Tensor] = None) -> Tensor:
        """One evaluation of the network.

        Args:
            x: (n, in_channels, h, w), n a multiple of b, h and w multiples of 2^(levels - 1). Images that share their
                conditioning follow each other.
            c_noise: (b,), the noise level's embedding input.
            context: (b, m, context_dim).
            vector: (b, adm_in_channels); None where there is none.

        Returns:
            (n, out_channels, h, w).
        """
        return self.with_deep_features(x, c_noise, context, vector)[0]

    def with_deep_features(
        self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor]:
        """As :meth:`construct`, and what its last stage took from the one before, (n, c, h, w)."""
        emb = self.embedding(x, c_noise, vector)
        skips = ()
        for stage in self.input_blocks:
            for block in stage:
                x = block(x, emb, context)
            skips += (x,)
        for block in self.middle_block:
            x = block(x, emb, context)
        for index in range(len(self.output_blocks) - 1):  # a slice of a CellList would give its parameters other names
            x = ops.cat((x, skips[-1 - index]), axis=1)
            for block in self.output_blocks[index]:
                x = block(x, emb, context)
        return self.last_stage(x, skips[0], emb, context), x

    def from_deep_features(
        self, deep: Tensor, x: Tensor, c_noise: Tensor, context: Tensor, vector: Optional[Tensor] = None
    ) -> Tensor:
        """The last stage alone, over the deep features of another noise level (DeepCache, Ma et al. 2024).

        Args:
            deep: from :meth:`with_deep_features`; the others as in :meth:`construct`.
        """
        emb = self.embedding(x, c_noise, vector)
        for block in self.input_blocks[0]:
            x = block(x, emb, context)
        return self.last_stage(deep, x, emb, context)

    def last_stage(self, x: Tensor, skip: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """From the stage before and the first convolution to the prediction."""
        x = ops.cat((x, skip), axis=1)
        for block in self.output_blocks[-1]:
            x = block(x, emb, context)
        return self.out(x)

    def embedding(self, x: Tensor, c_noise: Tensor, vector: Optional[Tensor]) -> Tensor:
        """Of the noise level and the vector conditioning, (b, 4·model_channels), in the type of x."""
        emb = self.time_embed(sinusoidal_embedding(c_noise, self.model_channels).astype(x.dtype))
        return emb + self.label_emb[0](vector.astype(x.dtype)) if self.has_vector else emb


def _res_block(cls: Callable[..., nn.Cell], emb_channels: int, channels: int, out_channels: int) -> nn.Cell:
    return cls(channels, emb_channels, out_channels)


def _heads(num_heads: int, head_channels: int, channels: int) -> Tuple[int, int]:
    """The number of an attention's heads, and their width."""
    heads = num_heads or channels // head_channels
    return heads, channels // heads


def _transformer(
    cls: Callable[..., nn.Cell], heads: Callable, context_dim: int, linear: bool, channels: int, depth: int
) -> nn.Cell:
    return cls(channels, *heads(channels), context_dim, depth, linear)


def _level(
    res_block: Callable, transformer: Callable, depths: Mapping[int, int], channels: int, out: int, factor: int
) -> List[nn.Cell]:
    """A residual block and, where the level has one, a transformer; `depths` by downsampling factor."""
    return [res_block(channels, out), *([transformer(out, depths[factor])] if factor in depths else [])]


def _build_down(
    in_channels: int, widths: Sequence[int], depth: int, level: Callable
) -> Tuple[List[nn.CellList], List[int]]:
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


def _build_up(skips: Sequence[int], widths: Sequence[int], depth: int, level: Callable) -> List[nn.CellList]:
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
