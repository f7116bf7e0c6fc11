"""Classifier-free guidance (Ho & Salimans 2022)."""

from dataclasses import dataclass, field
from typing import Annotated, Optional, Tuple

import numpy as np

from gm.config.values import OptionError, Range

EVERY_SIGMA = (0.0, float("inf"))
Scale = Annotated[float, Range(0, 100)]


@dataclass(eq=False)
class Guider:
    """uncond + scale·(cond - uncond), with a scale for each of the images that share their conditioning.

    Args:
        min_scale, max_scale: the range of the scale; each guider says over which images.

    Attributes:
        interval: the lowest and the highest σ that is guided (Kynkäänniemi et al. 2024); all of them by default.
    """

    max_scale: Scale = 2.5
    min_scale: Scale = 1.0
    interval: Tuple[float, float] = field(default=EVERY_SIGMA, init=False)

    def shape(self, count: int) -> np.ndarray:
        """(k,) in 0..1: where, of k images, the scale is lowest (0) and highest (1)."""
        raise NotImplementedError

    def scales(self, count: int) -> np.ndarray:
        """(k,): the scale of each of k images."""
        return self.min_scale + (self.max_scale - self.min_scale) * self.shape(count)

    def __call__(self, uncond: np.ndarray, cond: np.ndarray) -> np.ndarray:
        """Two denoised estimates (…, k, c, h, w) -> the guided one."""
        scales = self.scales(cond.shape[-4]).astype(cond.dtype).reshape(-1, 1, 1, 1)
        return uncond + scales * (cond - uncond)

    def is_active(self, count: int, sigma: float) -> bool:
        """Whether any of k images' scales at σ differs from 1, so that the unconditional half is needed."""
        low, high = self.interval
        return low <= sigma <= high and bool(np.any(self.scales(count) != 1.0))


class ConstantGuider(Guider):
    """max for every image; min is not used, and may not be given."""

    def __init__(self, max_scale: Scale = 2.5, min_scale: Optional[Scale] = None) -> None:
        if min_scale is not None and min_scale != max_scale:
            raise OptionError("min_scale: the constant guider has one scale; give max_scale alone")
        super().__init__(max_scale, max_scale)

    def shape(self, count: int) -> np.ndarray:
        return np.ones(count)
