"""Moves between the layouts of a clip: frames in the batch, frames as an axis, frames beside the channels."""

from mindspore import Tensor

from gm.backend import operators


def split_frames(x: Tensor, num_frames: int) -> Tensor:
    """(b t) … -> b t … (no copy)."""
    return operators.current.reshape(x, (x.shape[0] // num_frames, num_frames) + x.shape[1:])


def merge_frames(x: Tensor) -> Tensor:
    """b t … -> (b t) … (no copy)."""
    return operators.current.reshape(x, (x.shape[0] * x.shape[1],) + x.shape[2:])


def channels_first(x: Tensor, num_frames: int) -> Tensor:
    """(b t) c h w -> b c t (h w): time as a spatial axis, for convolutions and norms over it."""
    n, c, h, w = x.shape
    x = operators.current.reshape(x, (n // num_frames, num_frames, c, h * w))
    return operators.current.permute(x, (0, 2, 1, 3))


def frames_first(x: Tensor, height: int, width: int) -> Tensor:
    """b c t (h w) -> (b t) c h w."""
    b, c, t, _ = x.shape
    return operators.current.reshape(operators.current.permute(x, (0, 2, 1, 3)), (b * t, c, height, width))
