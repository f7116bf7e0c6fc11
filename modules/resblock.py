"""Residual blocks of the video UNet: convolutions in space, then in time, blended."""

from mindspore import Tensor, nn

from gm.device.kernels import add_broadcast, add_scaled
from gm.layers import Conv2d, GroupNorm, Linear, SiLU, TemporalConv
from modules.blend import AlphaBlender
from modules.layout import channels_first, frames_first


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
