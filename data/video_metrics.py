"""Figures of generated videos, as functions of NumPy arrays. Frames are (t, h, w, 3), uint8, RGB."""

from typing import Sequence

import cv2
import numpy as np

from data.motion import SAMPLE_SECONDS, clip_score

MAX_LEVEL = 255.0
STATIC_FLOW = 0.25  # pixels from one frame to the next below which a place counts as standing still
# Farnebäck's parameters (OpenCV's names) for flow at full resolution, frames of 100 to 600 rows.
FARNEBACK = {"pyr_scale": 0.5, "levels": 4, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.1, "flags": 0}


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; infinite if they are equal."""
    if image.shape != reference.shape:
        raise ValueError(f"shapes differ: {image.shape} and {reference.shape}")
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return float(10 * np.log10(MAX_LEVEL**2 / error)) if error else float("inf")


def colour_drift(frames: np.ndarray) -> float:
    """How far the mean colour strays from the first frame's: mean over later frames and channels, in levels (0..255).

    A move that brings other parts of a scene into view changes the mean colour as well: compare with real clips.
    """
    if len(frames) < 2:
        return 0.0
    means = frames.mean(axis=(1, 2), dtype=np.float64)  # t 3
    return float(np.abs(means[1:] - means[0]).mean())


def flow_magnitude(frames: np.ndarray) -> np.ndarray:
    """Length of the Farnebäck flow from each frame to the next: (t - 1, h, w), in pixels."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if len(grey) < 2:
        return np.zeros((0,) + frames.shape[1:3])
    flows = [cv2.calcOpticalFlowFarneback(a, b, None, **FARNEBACK) for a, b in zip(grey, grey[1:])]
    return np.linalg.norm(np.stack(flows), axis=-1)


def mean_flow(frames: np.ndarray, fps: float) -> float:
    """Mean Farnebäck flow, sampled and measured as motion buckets are (:mod:`data.motion`), in shortest sides a second.

    The unit does not depend on size or frame rate; it is that of make_clips.py's speeds. Farnebäck sees no motion
    where there is no texture, so a moving photograph measures less than its true speed. 0 for fewer than two frames.
    """
    if len(frames) < 2:
        return 0.0
    step = min(max(1, round(fps * SAMPLE_SECONDS)), len(frames) - 1)
    return clip_score(frames[::step], step / fps)


def static_areas(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Where all of several versions of one clip stand still from a frame to the next: (t - 1, h, w), bool."""
    return np.logical_and.reduce([flow_magnitude(frames) < STATIC_FLOW for frames in videos])


def flicker(frames: np.ndarray, static: np.ndarray) -> float:
    """Mean absolute difference from frame to frame where nothing moves, in levels (0..255); NaN if all moves.

    Args:
        frames: (t, h, w, 3) uint8.
        static: (t - 1, h, w) bool, from :func:`static_areas`.
    """
    difference = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean(axis=-1)  # t-1 h w
    return float(difference[static].mean()) if static.any() else float("nan")


def sharpness(frames: np.ndarray, reference: np.ndarray) -> float:
    """Energy of fine detail (Laplacian of the grey image) of frames, relative to a reference image's.

    Args:
        frames: (t, h, w, 3) uint8.
        reference: (h, w, 3) uint8.

    Returns:
        1 for equal detail, towards 0 for a blur, above 1 for noise.
    """

    def detail(image: np.ndarray) -> float:
        return float((cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F) ** 2).mean())

    return float(np.mean([detail(frame) for frame in frames]) / max(detail(reference), 1e-12))


def contact_sheet(videos: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Evenly spaced frames of several clips of one size, a clip a row, on white.

    Args:
        videos: clips, each (t, h, w, 3) uint8.
        columns: frames of each clip; the first and the last are among them.
        gap: pixels between images.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = videos[0].shape[1:3]
    sheet = np.full((len(videos) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for row, frames in enumerate(videos):
        for column, index in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            y, x = row * (height + gap), column * (width + gap)
            sheet[y : y + height, x : x + width] = frames[index]
    return sheet
