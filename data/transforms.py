"""From decoded frames to the model's: resized and cropped without distortion, mirrored, scaled to -1..1."""

from typing import Sequence, Tuple

import cv2
import numpy as np

CENTRE = (0.5, 0.5)


def cover(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes frames, aspect kept, to the smallest size that covers height x width.

    Shrinking averages areas, so that fine detail does not alias; enlarging is bicubic.

    Args:
        frames: uint8 (t, h, w, c).

    Returns:
        uint8 (t, h', w', c) with h' >= height and w' >= width, one of them equal; the input itself if it fits already.
    """
    old_height, old_width = frames.shape[1:3]
    scale = max(height / old_height, width / old_width)
    new_height = max(height, round(old_height * scale))
    new_width = max(width, round(old_width * scale))
    if (new_height, new_width) == (old_height, old_width):
        return frames
    interpolation = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
    resized = np.empty((len(frames), new_height, new_width, frames.shape[3]), np.uint8)
    for i, frame in enumerate(frames):
        cv2.resize(frame, (new_width, new_height), dst=resized[i], interpolation=interpolation)
    return resized


def crop(frames: np.ndarray, height: int, width: int, position: Tuple[float, float] = CENTRE) -> np.ndarray:
    """Cuts the same height x width window out of all frames.

    Args:
        frames: (t, h, w, c), at least as large as the window.
        position: where the window lies, (vertical, horizontal), from 0 (top, left) to 1 (bottom, right).

    Returns:
        (t, height, width, c), a view.
    """
    top = round(position[0] * (frames.shape[1] - height))
    left = round(position[1] * (frames.shape[2] - width))
    return frames[:, top : top + height, left : left + width]


def channels_first(frames: np.ndarray) -> np.ndarray:
    """(t, h, w, c) to (t, c, h, w), contiguous."""
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))  # t h w c -> t c h w


def to_model_range(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips of one shape, uint8 in 0..255, stacked as float32 in -1..1."""
    batch = np.empty((len(clips), *clips[0].shape), np.float32)
    for scaled, clip in zip(batch, clips):
        np.multiply(clip, np.float32(1.0 / 127.5), out=scaled)
    batch -= np.float32(1.0)
    return batch
