"""Classifier-free guidance (Ho & Salimans 2022) with a scale for each frame (SVD, D.4.1)."""

from dataclasses import dataclass, field
from typing import Annotated, Mapping, Optional, Tuple, Type

import numpy as np

from gm.config.values import OptionError, Range

EVERY_SIGMA = (0.0, float("inf"))
Scale = Annotated[float, Range(0, 100)]


@dataclass(eq=False)
class Guider:
    """uncond + scale·(cond - uncond).

    Args:
        min_scale, max_scale: the range of the scale; each guider says over which frames.

    Attributes:
        interval: the lowest and the highest σ that is guided (Kynkäänniemi et al. 2024); all of them by default.
    """

    max_scale: Scale = 2.5
    min_scale: Scale = 1.0
    interval: Tuple[float, float] = field(default=EVERY_SIGMA, init=False)

    def shape(self, num_frames: int) -> np.ndarray:
        """(t,) in 0..1: where the scale is lowest (0) and highest (1)."""
        raise NotImplementedError

    def scales(self, num_frames: int) -> np.ndarray:
        """(t,): the scale of each frame."""
        return self.min_scale + (self.max_scale - self.min_scale) * self.shape(num_frames)

    def __call__(self, uncond: np.ndarray, cond: np.ndarray) -> np.ndarray:
        """Two denoised clips (…, t, c, h, w) -> the guided one."""
        scales = self.scales(cond.shape[-4]).astype(cond.dtype).reshape(-1, 1, 1, 1)
        return uncond + scales * (cond - uncond)

    def is_active(self, num_frames: int, sigma: float) -> bool:
        """Whether any frame's scale at σ differs from 1, so that the unconditional half is needed."""
        low, high = self.interval
        return low <= sigma <= high and bool(np.any(self.scales(num_frames) != 1.0))


class LinearPredictionGuider(Guider):
    """From min at the first frame to max at the last: SVD's own."""

    def shape(self, num_frames: int) -> np.ndarray:
        return np.linspace(0, 1, num_frames)


class ConstantGuider(Guider):
    """max at every frame; min is not used, and may not be given."""

    def __init__(self, max_scale: Scale = 2.5, min_scale: Optional[Scale] = None) -> None:
        if min_scale is not None and min_scale != max_scale:
            raise OptionError("min_scale: the constant guider has one scale; give max_scale alone")
        super().__init__(max_scale, max_scale)

    def shape(self, num_frames: int) -> np.ndarray:
        return np.ones(num_frames)


class TrianglePredictionGuider(Guider):
    """min at both ends, max in the middle (sgm, for closed camera paths)."""

    def shape(self, num_frames: int) -> np.ndarray:
        position = np.linspace(0, 1, num_frames)
        return 1 - np.abs(2 * position - 1)


class TrapezoidPredictionGuider(Guider):
    """min at both ends, max over the middle half."""

    def shape(self, num_frames: int) -> np.ndarray:
        position = np.linspace(0, 1, num_frames)
        return np.clip(2 - 4 * np.abs(position - 0.5), 0, 1)


GUIDERS: Mapping[str, Type[Guider]] = {
    "linear": LinearPredictionGuider,
    "constant": ConstantGuider,
    "triangle": TrianglePredictionGuider,
    "trapezoid": TrapezoidPredictionGuider,
}
