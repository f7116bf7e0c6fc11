"""Which operators of a network that is compiled for training are loops (:mod:`gm.backend.graph_operators`), on CPU."""

from contextlib import contextmanager
from functools import cache
from typing import Iterator, Optional

import mindspore as ms
from mindspore import Tensor

from gm.backend.graph_filters import FilterByTiles, FilterOverTime
from gm.backend.graph_operators import BiasAdd
from gm.backend.kernels.minimal_filter import TILE

LARGE = 1 << 20  # numbers, from which on a loop makes up for being called
LEAST_CHANNELS = 48
MOST_WEIGHTS = 1 << 16  # pairs of channels: tiled weights are held until the gradients are there

active = False  # whether networks are being compiled with such operators
add_bias: Optional[BiasAdd] = None  # these are there when it is
filter_by_tiles: Optional[FilterByTiles] = None
filter_over_time: Optional[FilterOverTime] = None


@contextmanager
def loops_in_graphs() -> Iterator[None]:
    """Networks that are compiled inside the block have such operators where these are faster, on CPU."""
    global active
    before, active = active, ms.get_context("device_target") == "CPU" and ms.get_context("mode") == ms.GRAPH_MODE
    if active:
        _make_operators()
    try:
        yield
    finally:
        active = before


@cache
def _make_operators() -> None:
    global add_bias, filter_by_tiles, filter_over_time
    add_bias, filter_by_tiles, filter_over_time = BiasAdd(), FilterByTiles(), FilterOverTime()


def take_bias(y: Tensor) -> bool:
    """Whether :data:`add_bias` adds a bias to `y`: MindSpore's gradient of it takes five times as long over
    (8192, 512)."""
    return active and y.ndim == 2 and y.dtype == ms.float32 and y.shape[0] * y.shape[1] >= LARGE


def take_filter(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is a filter by tiles: over many channels, whole tiles of them, and in a small network, for
    the memory's sake.

    Args:
        x: (n, i, h, w) or (b, i, t, n).
        weight: (o, i, 3, 3), for :data:`filter_by_tiles`, or (o, i, 3, 1, …), for :data:`filter_over_time`.
    """
    (o, i), across = weight.shape[:2], weight.shape[3]
    n, _, h, w = x.shape
    if not active or x.dtype != ms.float32 or min(o, i) < LEAST_CHANNELS or o * i > MOST_WEIGHTS or h % TILE:
        return False
    return across == 1 or (w % TILE == 0 and 2 * n * h * w >= TILE**2 * max(o, i))
