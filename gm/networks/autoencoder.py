"""The image autoencoder of Stable Diffusion (Rombach et al. 2022): 8x smaller latents, in the published names."""

from functools import partial
from typing import Callable, List, Optional, Sequence

from mindspore import Tensor, nn

from gm.backend import operators
from gm.networks.layers import (
    GROUPS,
    Conv2d,
    GroupNorm,
    SiLU,
    UpsamplingConv,
    from_tokens,
    set_identity,
    set_norm_groups,
    to_tokens,
)

EPS = 1e-6  # of every GroupNorm of the autoencoder
CHANNEL_MULT = (1, 2, 4, 4)
DOWNSAMPLING = 8  # of a latent, in both directions
ACTIVATIONS = 4  # of the size of its input that a residual block holds at once


class ResnetBlock(nn.Cell):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels, EPS)
        self.conv1 = Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, EPS)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None if channels == out_channels else Conv2d(channels, out_channels, 1)
        self.silu = SiLU()

    def construct(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h, w)."""
        image_bytes = 4 * x.shape[1] * x.shape[2] * x.shape[3]
        return operators.current.by_rows(self.images, x, ACTIVATIONS * image_bytes)

    def images(self, x: Tensor) -> Tensor:
        """The same for any number of images."""
        h = self.conv1(self.silu(self.norm1(x)))
        h = self.conv2(self.silu(self.norm2(h)))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class AttnBlock(nn.Cell):
    """Single-headed self-attention over the pixels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, EPS)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def construct(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        height, width = x.shape[2:]
        h = self.norm(x)
        q, k, v = to_tokens(self.q(h)), to_tokens(self.k(h)), to_tokens(self.v(h))  # n (h w) c
        out = operators.current.attention(q.expand_dims(1), k.expand_dims(1), v.expand_dims(1)).squeeze(1)
        return x + self.proj_out(from_tokens(out, height, width))


class Middle(nn.Cell):
    """Block, attention, block at the smallest size."""

    def __init__(self, channels: int, block: Callable[[int, int], nn.Cell] = ResnetBlock) -> None:
        super().__init__()
        self.block_1 = block(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = block(channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Cell):
    """A convolution of stride 2 over the picture padded with zeros at the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Cell):
    """Twice the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsamplingConv(channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Level(nn.Cell):
    """The blocks of one resolution, then a change of size (`downsample` or `upsample`) if there is one."""

    def __init__(
        self, blocks: List[nn.Cell], downsample: Optional[nn.Cell] = None, upsample: Optional[nn.Cell] = None
    ) -> None:
        super().__init__()
        self.block = nn.CellList(blocks)
        self.downsample = downsample
        self.upsample = upsample

    def construct(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h', w')."""
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Encoder(nn.Cell):
    """Pictures to the moments of a Gaussian over latents.

    Args:
        ch: width of the first level (128).
        ch_mult: width of each level, as a multiple of ch.
        num_res_blocks: per level.
        in_channels: of the picture.
        z_channels: of the latent; the result has twice as many (mean and log-variance).
        num_groups: of every GroupNorm.
    """

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = CHANNEL_MULT,
        num_res_blocks: int = 2,
        in_channels: int = 3,
        z_channels: int = 4,
        num_groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.conv_in = Conv2d(in_channels, ch, 3, padding=1)
        levels, channels = [], ch
        for index, mult in enumerate(ch_mult):
            width = ch * mult
            blocks = [ResnetBlock(channels if i == 0 else width, width) for i in range(num_res_blocks)]
            last = index == len(ch_mult) - 1
            levels.append(Level(blocks, downsample=None if last else Downsample(width)))
            channels = width
        self.down = nn.CellList(levels)
        self.mid = Middle(channels)
        self.norm_out = GroupNorm(channels, EPS)
        self.silu = SiLU()
        self.conv_out = Conv2d(channels, 2 * z_channels, 3, padding=1)
        set_norm_groups(self, num_groups)

    def construct(self, x: Tensor) -> Tensor:
        """(n, 3, H, W), range -1..1 -> (n, 8, H/8, W/8)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Cell):
    """Latents to pictures, each by itself.

    Args:
        out_ch: channels of the picture; the others are the encoder's.
    """

    block: Callable[[int, int], nn.Cell] = ResnetBlock
    last_conv: Callable[[int, int], nn.Cell] = partial(Conv2d, kernel_size=3, padding=1)

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = CHANNEL_MULT,
        num_res_blocks: int = 2,
        out_ch: int = 3,
        z_channels: int = 4,
        num_groups: int = GROUPS,
    ) -> None:
        super().__init__()
        block = type(self).block
        channels = ch * ch_mult[-1]
        # The largest activation has the second level's channels in the picture's size.
        self.numbers_per_place = ch * ch_mult[min(1, len(ch_mult) - 1)] * 4 ** (len(ch_mult) - 1)
        self.conv_in = Conv2d(z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, block)
        levels = []
        for index in reversed(range(len(ch_mult))):
            width = ch * ch_mult[index]
            blocks = [block(channels if i == 0 else width, width) for i in range(num_res_blocks + 1)]
            levels.insert(0, Level(blocks, upsample=Upsample(width) if index > 0 else None))
            channels = width
        self.up = nn.CellList(levels)  # the highest resolution comes first, as in the published names
        self.norm_out = GroupNorm(channels, EPS)
        self.silu = SiLU()
        self.conv_out = type(self).last_conv(channels, out_ch)
        set_norm_groups(self, num_groups)

    def construct(self, z: Tensor) -> Tensor:
        """(…, z, h, w) -> (…, 3, 8h, 8w), about -1..1."""
        y = self.images(z.reshape((-1,) + z.shape[-3:]), z.shape[0])
        return y.reshape(z.shape[:-3] + y.shape[1:])

    def images(self, z: Tensor, clips: int) -> Tensor:
        """(n, z, h, w) -> (n, 3, 8h, 8w); `clips` is the size of the first of all axes."""
        x = self.mid(self.conv_in(z))
        for index in range(len(self.up)):
            x = self.up[len(self.up) - 1 - index](x)
        return self.conv_out(self.silu(self.norm_out(x)))


class AutoencodingEngine(nn.Cell):
    """Encoder and decoder without the 1x1 convolutions between them: SVD's `first_stage_model`."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, x: Tensor) -> Tensor:
        """The mode (mean) of the posterior: (n, 3, H, W), -1..1 -> (n, 4, H/8, W/8), not scaled."""
        return mode(self.moments(x))

    def moments(self, x: Tensor) -> Tensor:
        """Mean and log-variance: (n, 3, H, W) -> (n, 8, H/8, W/8)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """(…, z, h, w), not scaled -> (…, 3, 8h, 8w)."""
        return self.decoder(z)


class AutoencoderKL(AutoencodingEngine):
    """Stable Diffusion's autoencoder: with `quant_conv` after the encoder and `post_quant_conv` before the decoder.

    Without a checkpoint `post_quant_conv` starts as the identity, so that a decoder without it reads the same latents.

    Args:
        embed_dim: channels of the latent.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, embed_dim: int = 4, z_channels: int = 4) -> None:
        super().__init__(encoder, decoder)
        self.quant_conv = Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = Conv2d(embed_dim, z_channels, 1)
        set_identity(self.post_quant_conv)

    def moments(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z.reshape((-1,) + z.shape[-3:])).reshape(z.shape))


def mode(moments: Tensor) -> Tensor:
    """The mean of a diagonal Gaussian given its moments: (n, 2z, h, w) -> (n, z, h, w)."""
    return operators.current.halves(moments, 1)[0]
