"""The autoencoder's decoder with temporal layers, against flicker (VideoLDM, section 3.1.1)."""

import mindspore as ms
from mindspore import Parameter, Tensor, ops
from mindspore.common.initializer import initializer

from gm.backend import operators
from gm.networks.autoencoder import Decoder, ResnetBlock
from gm.networks.layers import Conv2d, TemporalConv, set_identity
from modules.frame_layout import channels_first, frames_first
from modules.video_blocks import TemporalResidual


class VideoResnetBlock(ResnetBlock):
    """The image decoder's block on each frame, then one over time, blended.

    The published blend is `alpha * temporal + (1 - alpha) * spatial`, the other way round than the UNet's; with x the
    spatial result and x + f(x) the temporal one it is x + alpha·f(x).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels)
        self.time_stack = TemporalResidual(out_channels)
        self.mix_factor = Parameter(initializer(0.0, (1,), ms.float32))

    def construct(self, x: Tensor, clips: int = 1) -> Tensor:
        """(b·t, c, h, w), of b clips -> (b·t, c', h, w)."""
        x = super().construct(x)
        branch = self.time_stack(channels_first(x, x.shape[0] // clips), None)
        alpha = ops.sigmoid(self.mix_factor.astype(ms.float32)).reshape(())
        return operators.current.add_scaled(x, frames_first(branch, x.shape[2], x.shape[3]), alpha)


class VideoConvOut(Conv2d):
    """The last convolution: 3x3 in space, then (3, 1, 1) over time, which starts as the identity."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)
        self.time_mix_conv = TemporalConv(out_channels, out_channels)
        set_identity(self.time_mix_conv)

    def construct(self, x: Tensor, clips: int = 1) -> Tensor:
        """(b·t, c, h, w), of b clips -> (b·t, c', h, w)."""
        x = super().construct(x)
        y = self.time_mix_conv(channels_first(x, x.shape[0] // clips))
        return frames_first(y, x.shape[2], x.shape[3])


class VideoDecoder(Decoder):
    """Latents to frames, all frames of a clip together: (b, t, z, h, w) -> (b, t, 3, 8h, 8w)."""

    block, last_conv = VideoResnetBlock, VideoConvOut

    def images(self, z: Tensor, clips: int) -> Tensor:
        """See :meth:`Decoder.images`: the same way, with time."""
        x = self.mid.block_1(self.conv_in(z), clips)
        x = self.mid.block_2(self.mid.attn_1(x), clips)
        for index in range(len(self.up)):
            level = self.up[len(self.up) - 1 - index]
            for block in level.block:
                x = block(x, clips)
            if level.upsample is not None:
                x = level.upsample(x)
        return self.conv_out(self.silu(self.norm_out(x)), clips)
