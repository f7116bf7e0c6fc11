"""Nearest-neighbour doubling and the convolution that follows it."""

from mindspore import Tensor, ops

from gm.device.winograd import WinogradConv
from gm.layers import Conv2d


def double_size(x: Tensor) -> Tensor:
    """Each pixel repeated twice in both directions: (n, c, h, w) -> (n, c, 2h, 2w)."""
    n, c, h, w = x.shape
    x = ops.broadcast_to(x.reshape(n * c, h, 1, w, 1), (n * c, h, 2, w, 2))
    return x.reshape(n, c, 2 * h, 2 * w)


class UpsamplingConv(Conv2d):
    """A 3x3 convolution, one pixel of zero padding, over the picture of twice the height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        if self.winograd is not None:
            self.winograd_doubled = WinogradConv(scale=2)

    def construct(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', 2h, 2w)."""
        x, weight = self.in_compute_type(x)
        n, c, h, w = x.shape
        if self.by_tiles((n, c, 2 * h, 2 * w), x.dtype):
            return self.add_bias(self.winograd_doubled(x, weight))
        return self.add_bias(self.convolve(double_size(x), weight))
