"""The autoencoder's decoder with temporal layers, against flicker (VideoLDM, section 3.1.1)."""

from mindspore import Parameter, Tensor, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import initializer

from gm.backend.operators import add_scaled
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
        self.mix_factor = Parameter(initializer(0.0, (1,), mstype.float32))

    def construct(self, x: Tensor, num_frames: int) -> Tensor:
        """x: (b·t, c, h, w) -> (b·t, c', h, w)."""
        x = self.spatial(x)
        height, width = x.shape[2:]
        branch = frames_first(self.time_stack(channels_first(x, num_frames), None), height, width)
        alpha = ops.sigmoid(self.mix_factor.astype(mstype.float32)).reshape(())
        return add_scaled(x, branch, alpha)


class VideoConvOut(Conv2d):
    """The last convolution: 3x3 in space, then (3, 1, 1) over time, which starts as the identity."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)
        self.time_mix_conv = TemporalConv(out_channels, out_channels)
        set_identity(self.time_mix_conv)

    def over_frames(self, x: Tensor, num_frames: int) -> Tensor:
        x = self.construct(x)
        height, width = x.shape[2:]
        return frames_first(self.time_mix_conv(channels_first(x, num_frames)), height, width)


class VideoDecoder(Decoder):
    """Latents to frames, all frames of a clip together."""

    block = VideoResnetBlock

    def make_conv_out(self, channels: int, out_ch: int) -> VideoConvOut:
        return VideoConvOut(channels, out_ch)

    def to_pixels(self, x: Tensor, num_frames: int) -> Tensor:
        return self.conv_out.over_frames(x, num_frames)
