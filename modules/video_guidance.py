"""Classifier-free guidance with a scale for each frame (SVD, D.4.1)."""

from typing import Mapping, Type

import numpy as np

from gm.sampling.guidance import ConstantGuider, Guider


class LinearPredictionGuider(Guider):
    """From min at the first frame to max at the last: SVD's own."""

    def shape(self, count: int) -> np.ndarray:
        return np.linspace(0, 1, count)


class TrianglePredictionGuider(Guider):
    """min at both ends, max in the middle (sgm, for closed camera paths)."""

    def shape(self, count: int) -> np.ndarray:
        position = np.linspace(0, 1, count)
        return 1 - np.abs(2 * position - 1)


class TrapezoidPredictionGuider(Guider):
    """min at both ends, max over the middle half."""

    def shape(self, count: int) -> np.ndarray:
        position = np.linspace(0, 1, count)
        return np.clip(2 - 4 * np.abs(position - 0.5), 0, 1)


GUIDERS: Mapping[str, Type[Guider]] = {
    "linear": LinearPredictionGuider,
    "constant": ConstantGuider,
    "triangle": TrianglePredictionGuider,
    "trapezoid": TrapezoidPredictionGuider,
}
