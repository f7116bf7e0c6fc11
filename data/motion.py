"""How much a video moves: a score from optical flow, and its mapping to SVD's motion buckets and back.

The score follows Stable Video Diffusion (Blattmann et al. 2023, appendix C): Farneback flow between frames at 2 fps,
the flow maps downscaled to a shortest side of 16, averaged over space and time. The paper leaves the rest open; here

- frames are shrunk to a shortest side of 64 before the flow is computed, which makes the score independent of the
  resolution and lets the flow follow larger shifts: up to about a sixth of the shortest side between two frames, a
  third of it per second. Faster motion scores too low, but still as fast motion;
- the maps are averaged over areas as vectors, so that noise cancels, and then their lengths are averaged;
- the unit is shortest sides per second, so that neither size nor frame rate enters.

OpenCV and the decoder are imported when a video is scored: most programs need the mapping alone.
"""

import math
from itertools import islice, tee
from typing import TYPE_CHECKING, Iterable, List, Tuple

import numpy as np

if TYPE_CHECKING:
    from data.video_reader import VideoReader

SAMPLE_SECONDS = 0.5  # 2 fps (SVD, C)
FLOW_SIDE = 64  # shortest side of the frames between which flow is computed, pixels
MAP_SIDE = 16  # shortest side of the flow maps (SVD, C)
FARNEBACK = {"pyr_scale": 0.5, "levels": 2, "winsize": 21, "iterations": 5, "poly_n": 7, "poly_sigma": 1.5, "flags": 0}
MAX_BUCKET = 255
FULL_SCORE = 0.5  # shortest sides per second; this and all above is bucket 255
SCORE_SCALE = 0.01  # shortest sides per second; well below it the buckets are even in the score, above in its logarithm


def motion_bucket(score: float) -> int:
    """The motion bucket, 0..255, of a score in shortest sides per second.

    `bucket = 255 ln(1 + score / 0.01) / ln(1 + 0.5 / 0.01)`, rounded, 255 at most: equal ratios of speed are about
    equally far apart. 127 is 0.06 shortest sides per second. The project's own choice; SVD's authors published none.

    Raises:
        ValueError: the score is negative or no number.
    """
    if not score >= 0.0:
        raise ValueError(f"a motion score is 0 or more, not {score}")
    share = math.log1p(min(score, FULL_SCORE) / SCORE_SCALE) / math.log1p(FULL_SCORE / SCORE_SCALE)
    return round(MAX_BUCKET * share)


def motion_score(bucket: float) -> float:
    """The score, in shortest sides per second, in the middle of a bucket: the inverse of :func:`motion_bucket`.

    Raises:
        ValueError: the bucket is outside 0..255.
    """
    if not 0 <= bucket <= MAX_BUCKET:
        raise ValueError(f"a motion bucket lies in 0..{MAX_BUCKET}, not {bucket}")
    return SCORE_SCALE * math.expm1(bucket / MAX_BUCKET * math.log1p(FULL_SCORE / SCORE_SCALE))


def video_score(reader: "VideoReader") -> float:
    """The motion score of a whole video; decodes up to its last frame, so that damage anywhere shows.

    A video shorter than half a second is scored by its first and last frame.

    Raises:
        VideoError: it is damaged, or has one frame only.
    """
    times, last = _sample_times(reader)
    frames = reader.frames_at([*times, last])
    score = clip_score(islice(frames, len(times)), times[1] - times[0])
    for _ in frames:
        pass  # the last frame is not scored, but must be there
    return score


def clip_score(frames: Iterable[np.ndarray], seconds: float) -> float:
    """The mean speed between consecutive frames that lie `seconds` apart, in shortest sides per second.

    Args:
        frames: two or more of uint8 (h, w, 3) in RGB.
    """
    earlier, later = tee(_shrunk(frame) for frame in frames)
    next(later)
    return float(np.mean([_shift(*pair) for pair in zip(earlier, later)])) / seconds


def _sample_times(reader: "VideoReader") -> Tuple[List[float], float]:
    """(the times between which flow is computed, the last frame's time), seconds."""
    from data.video_reader import VideoError

    last = (reader.num_frames - 1) / reader.fps
    if last <= 0.0:
        raise VideoError(f"{reader.path}: has one frame only, so nothing moves in it")
    if last < SAMPLE_SECONDS:
        return [0.0, last], last
    return [i * SAMPLE_SECONDS for i in range(int(last / SAMPLE_SECONDS) + 1)], last


def _shrunk(frame: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) to uint8 (h', w') grey with a shortest side of FLOW_SIDE."""
    import cv2

    return _to_shortest_side(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), FLOW_SIDE)


def _shift(earlier: np.ndarray, later: np.ndarray) -> float:
    """Mean length of the pooled flow between two grey images, in shortest sides."""
    import cv2

    flow = cv2.calcOpticalFlowFarneback(earlier, later, None, **FARNEBACK)  # h w 2, pixels
    pooled = _to_shortest_side(flow, MAP_SIDE)
    return float(np.hypot(pooled[..., 0], pooled[..., 1]).mean()) / FLOW_SIDE


def _to_shortest_side(image: np.ndarray, side: int) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR)
