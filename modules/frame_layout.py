"""Moves between the layouts of a clip: frames in the batch, frames as an axis, frames beside the channels."""

from mindspore import Tensor

from gm.backend import operators as kernels


def split_frames(x: Tensor, num_frames: int) -> Tensor:
    """(b t) … -> b t … (no copy)."""
    return kernels.reshape(x, (x.shape[0] // num_frames, num_frames) + x.shape[1:])


def merge_frames(x: Tensor) -> Tensor:
    """b t … -> (b t) … (no copy)."""
    return kernels.reshape(x, (x.shape[0] * x.shape[1],) + x.shape[2:])


def channels_first(x: Tensor, num_frames: int) -> Tensor:
    """(b t) c h w -> b c t (h w): time as a spatial axis, for convolutions and norms over it."""
    frames, c, h, w = x.shape
    x = kernels.reshape(x, (frames // num_frames, num_frames, c, h * w))
    return kernels.swap_axes(x, 1, 2)


def frames_first(x: Tensor, height: int, width: int) -> Tensor:
    """b c t (h w) -> (b t) c h w."""
    b, c, t, _ = x.shape
    return kernels.reshape(kernels.swap_axes(x, 1, 2), (b * t, c, height, width))
