"""The video UNet of Stable Video Diffusion: Stable Diffusion 2.1's with a temporal layer after each spatial one."""

from gm.networks.unet import UNet
from modules.video_blocks import SpatialVideoTransformer, VideoResBlock

# A parameter is temporal if its path has one of these; the last two are the decoder's.
TEMPORAL_NAMES = ("time_stack", "time_mixer", "time_pos_embed", "mix_factor", "time_mix_conv")


def is_temporal(name: str) -> bool:
    """Whether a parameter of the UNet or of the decoder belongs to a temporal layer."""
    return any(part in TEMPORAL_NAMES for part in name.split("."))


class VideoUNet(UNet):
    """Predicts F(c_in·x; c_noise, conditioning) for all frames of a clip together.

    It is called as :class:`gm.networks.unet.UNet`, with the frames of b clips as its images: x is (b·t, c, h, w), where
    the number of frames, t, is that of the images to one row of the conditioning.
    """

    res_block, transformer = VideoResBlock, SpatialVideoTransformer
