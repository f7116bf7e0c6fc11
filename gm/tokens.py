"""Pictures as sequences: a token per pixel, and back."""

from mindspore import Tensor

from gm.device import kernels


def to_tokens(x: Tensor) -> Tensor:
    """n c h w -> n (h w) c."""
    n, c, h, w = x.shape
    return kernels.swap_axes(kernels.reshape(x, (n, c, h * w)), 1, 2)


def from_tokens(x: Tensor, height: int, width: int) -> Tensor:
    """n (h w) c -> n c h w."""
    n, _, c = x.shape
    return kernels.reshape(kernels.swap_axes(x, 1, 2), (n, c, height, width))
