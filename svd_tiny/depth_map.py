"""A plausible depth map for one photograph, without a network: a far and a near layer and the ground between them.

Good enough for the parallax of a training clip. The horizon is the row that best separates the colours above it from
those below; the matte between the layers is soft and follows the image's outlines (guided filter: He, Sun and Tang,
"Guided Image Filtering", 2013).
"""

from typing import NamedTuple

import cv2
import numpy as np

WORK_WIDTH = 256  # depth maps are computed at this width
HORIZON_RANGE = (0.25, 0.70)  # of the height; beyond it a split says little about depth
GUIDE_RADIUS = 0.06  # of the width
GUIDE_EPSILON = 1e-3  # squared contrast (of 0..1 grey) that counts as an outline
GROUND_START = 0.4  # depth of the ground at the horizon; it grows to 1 at the lower edge


class DepthMap(NamedTuple):
    """Depth of a frame and of what lies around it; outside, the nearest known depth counts."""

    values: np.ndarray  # (h, w) float32, 0 (horizon) to 1 (nearest)
    left: float  # where the map starts, in frame widths from the frame's centre
    top: float
    step: float  # frame widths from one sample to the next

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Depth at complex positions, bilinear between samples."""
        shape = points.shape
        x = ((points.real - self.left) / self.step - 0.5).astype(np.float32).reshape(shape[0], -1)
        y = ((points.imag - self.top) / self.step - 0.5).astype(np.float32).reshape(shape[0], -1)
        return cv2.remap(self.values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(shape)


def flat_depth(points: np.ndarray) -> np.ndarray:
    """The depth of a flat image: 0 everywhere."""
    return np.zeros(points.shape)


def estimate_depth(photo: np.ndarray, near_subject: float) -> np.ndarray:
    """Guesses the depth of a photograph.

    Args:
        photo: (h, w, 3) uint8.
        near_subject: 0 for a landscape (ground that nears towards the lower edge) to 1 for a portrait (the middle is
            near, the border far).

    Returns:
        (h', WORK_WIDTH) float32, 0 (far) to 1 (near).
    """
    height = max(16, round(WORK_WIDTH * photo.shape[0] / photo.shape[1]))
    small = cv2.resize(photo, (WORK_WIDTH, height), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[0:height, 0:WORK_WIDTH].astype(np.float32)
    y, x = (y + 0.5) / height, (x + 0.5) / WORK_WIDTH
    horizon = find_horizon(small)
    below = np.clip((y - horizon) / max(1 - horizon, 0.1), 0, 1)
    ground = _sigmoid((y - horizon) / 0.03) * (GROUND_START + (1 - GROUND_START) * below)
    subject = np.exp(-((x - 0.5) ** 2 / 0.08 + (y - 0.55) ** 2 / 0.10))
    guide = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    depth = (1 - near_subject) * ground + near_subject * subject
    radius = max(1, round(GUIDE_RADIUS * WORK_WIDTH))
    return np.clip(guided_filter(depth, guide, radius, GUIDE_EPSILON), 0, 1)


def find_horizon(image: np.ndarray) -> float:
    """The height, 0..1 from the top, at which splitting an image explains most of its rows' colours (Otsu's way).

    Args:
        image: (h, w, 3) uint8.
    """
    rows = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float64).mean(axis=1)  # h 3
    height = len(rows)
    candidates = np.arange(round(HORIZON_RANGE[0] * height), round(HORIZON_RANGE[1] * height))
    sums = np.cumsum(rows, axis=0)
    above = sums[candidates - 1] / candidates[:, None]
    below = (sums[-1] - sums[candidates - 1]) / (height - candidates)[:, None]
    between = candidates * (height - candidates) * ((above - below) ** 2).sum(axis=1)
    return float(candidates[np.argmax(between)] / height)


def guided_filter(values: np.ndarray, guide: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Smooths `values` but along the outlines of `guide` (He et al. 2013, equations 5, 6 and 8).

    Args:
        values: (h, w) float32.
        guide: (h, w) float32, grey.
        radius: of the window, in samples.
        epsilon: variance of the guide below which it counts as even.
    """

    def mean(array: np.ndarray) -> np.ndarray:
        return cv2.blur(array, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_values = mean(guide), mean(values)
    variance = mean(guide * guide) - mean_guide**2
    slope = (mean(guide * values) - mean_guide * mean_values) / (variance + epsilon)
    offset = mean_values - slope * mean_guide
    return mean(slope) * guide + mean(offset)


def soften(depth: np.ndarray, step: float, max_gradient: float) -> np.ndarray:
    """Blurs a depth map until it rises by at most `max_gradient` per frame width, so that no parallax can tear it.

    Args:
        depth: (h, w) float32.
        step: frame widths from one sample to the next.
        max_gradient: 1 / frame widths, above 0.
    """
    sigma = 0.004 / step
    softened = depth
    while _steepest(softened) / step > max_gradient and sigma < 4 * max(depth.shape):
        softened = cv2.GaussianBlur(depth, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        sigma *= 1.4
    return softened


def _steepest(depth: np.ndarray) -> float:
    return float(max(np.abs(np.diff(depth, axis=0)).max(), np.abs(np.diff(depth, axis=1)).max()))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
