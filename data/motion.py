"""How much a video moves, and where its cuts are, from optical flow; and the mapping to SVD's motion buckets and back.

The score follows Stable Video Diffusion (Blattmann et al. 2023, appendix C): Farneback flow between frames at 2 fps,
the flow maps downscaled to a shortest side of 16, averaged over space and time. The paper leaves the rest open; here

- frames are shrunk to a shortest side of 64 before the flow is computed, which makes the score independent of the
  resolution, and stay in floating point with grey levels times 64: OpenCV adds a constant to the texture that it
  divides by, and takes smooth pictures for still ones where that is not small;
- flow is trusted if following it forth and back ends where it began, nearly everywhere, and if it leaves a smaller
  difference than the picture has texture. If not, the search starts again from the shift that phase correlation finds;
  if that fails too, the motion is too fast for half a second, and each half of the time is measured by itself, down to
  frames a twelfth of a second apart;
- frames that no flow connects are a cut, where a shot ends and another one begins; or they look alike all the same,
  then that time does not count. A video that is mostly so, though its frames have much in common (flicker, crowds), is
  one shot, and its score is what flow between the closest frames says;
- the maps are averaged over areas as vectors, so that noise cancels, and then their lengths are averaged;
- the unit is shortest sides per second, so that neither size nor frame rate enters.

OpenCV and the decoder are imported when a video is scored: most programs need the mapping alone.
"""

import math
import sys
from itertools import tee
from typing import TYPE_CHECKING, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

if TYPE_CHECKING:
    from data.video_reader import VideoReader

MEASURE = 2  # raised when videos get other scores; 1 took all flow over half a second, in whole grey levels
SAMPLE_SECONDS = 0.5  # 2 fps (SVD, C)
FINEST_SECONDS = 1 / 12  # frames are looked at no closer than this
FLOW_SIDE = 64  # shortest side of the frames between which flow is computed, pixels
TEXTURE_SIDE = 7  # of the areas whose texture is measured, pixels
ALIKE = 0.85  # correlation of two neighbouring frames above which no cut lies between
RELATED = 0.3  # the same, above which these are not of two scenes
LEAST_TEXTURE = 0.25  # grey levels a pixel; what is smoother shows no motion that can be told from noise
LEAST_SHIFT = 0.04  # pixels; what moves by less between two frames is film grain or the codec's
LEAST_CHANGE = 0.02  # grey levels, root mean square; below it nothing is seen to move
MAP_SIDE = 16  # shortest side of the flow maps (SVD, C)
GREY_SCALE = 64.0
SOFTNESS = 0.7  # standard deviation in pixels by which the frames are blurred, so that shrinking leaves no pattern
FARNEBACK = {"pyr_scale": 0.5, "levels": 2, "winsize": 21, "iterations": 5, "poly_n": 7, "poly_sigma": 1.5, "flags": 0}
RETURN_PIXELS, RETURN_SHARE = 0.25, 0.1  # how far from its start flow forth and back may end: pixels, share of it
TRUSTED_AREA = 0.9  # of the picture that stays in view, where flow has to return
MAX_BUCKET = 255
FULL_SCORE = 0.5  # shortest sides per second; this and all above is bucket 255
SCORE_SCALE = 0.01  # shortest sides per second; well below it the buckets are even in the score, above in its logarithm


class Piece(NamedTuple):
    """A stretch of a video without a cut."""

    first: int  # frame
    last: int  # frame
    score: Optional[float]  # shortest sides per second; None: it cannot be told


class Motion(NamedTuple):
    """What moves in a video: its stretches in their order. Where one does not begin as the one before ends, there is a
    cut between."""

    pieces: Tuple[Piece, ...]

    def score(self, first: int = 0, last: int = sys.maxsize) -> Optional[float]:
        """The mean over the frames `first` to `last`, in shortest sides per second; None if it cannot be told."""
        told = [piece for piece in self.pieces if piece.score is not None]
        weights = [max(0, min(last, piece.last) - max(first, piece.first)) for piece in told]
        total = sum(weights)
        return sum(weight * piece.score for weight, piece in zip(weights, told)) / total if total else None

    def shots(self) -> List[Tuple[int, int]]:
        """(first frame, last frame) of each; frames between two are those among which the cut lies."""
        shots: List[Tuple[int, int]] = []
        for piece in self.pieces:
            joined = shots and shots[-1][1] == piece.first
            shots[-1:] = [(shots[-1][0], piece.last)] if joined else [*shots[-1:], (piece.first, piece.last)]
        return shots


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


def video_motion(reader: "VideoReader") -> Motion:
    """What moves in a whole video; decodes up to its last frame, so that damage anywhere shows.

    Raises:
        VideoError: it is damaged, has one frame only, or its motion can be told in less than half of it.
    """
    from data.video_reader import VideoError

    if reader.num_frames < 2:
        raise VideoError(f"{reader.path}: has one frame only, so nothing moves in it")
    stride = max(1, int(FINEST_SECONDS * reader.fps))
    grid = sorted({*range(0, reader.num_frames, stride), reader.num_frames - 1})
    images = map(_shrunk, reader.frames_at([number / reader.fps for number in grid]))
    samples = max(1, round(SAMPLE_SECONDS * reader.fps / stride))  # in half a second
    pieces: List[Piece] = []
    guesses: List[Piece] = []
    held = [next(images)]
    for start in range(0, len(grid) - 1, samples):
        numbers = grid[start : start + samples + 1]
        held = [held[-1], *(next(images) for _ in numbers[1:])]
        pieces += _measured(numbers, held, reader.fps, guesses)
    if 2 * _seen(pieces) >= grid[-1]:
        return Motion(tuple(pieces))
    if 2 * _seen(pieces + guesses) < grid[-1]:
        reasons = "most of it is too smooth, too dark or too fast, or it has too many cuts"
        raise VideoError(f"{reader.path}: how it moves cannot be told: {reasons}")
    return Motion((Piece(0, grid[-1], Motion(tuple(pieces + guesses)).score()),))


def _seen(pieces: Sequence[Piece]) -> int:
    """Over how many frames these tell how something moves."""
    return sum(piece.last - piece.first for piece in pieces if piece.score is not None)


def clip_score(frames: Iterable[np.ndarray], seconds: float) -> float:
    """The mean speed between consecutive frames that lie `seconds` apart, in shortest sides per second, whether flow
    can be trusted or not.

    Args:
        frames: two or more of uint8 (h, w, 3) in RGB.
    """
    earlier, later = tee(_shrunk(frame) for frame in frames)
    next(later)
    return float(np.mean([_shift(*pair)[0] for pair in zip(earlier, later)])) / seconds


def clip_flow(frames: Iterable[np.ndarray], seconds: float) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """The flow between consecutive frames that lie `seconds` apart, whether it can be trusted or not.

    Args:
        frames: two or more of uint8 (h, w, 3) in RGB.

    Yields:
        (a frame, its flow map (h', w', 2), right and down, in shortest sides per second; its shortest side is
        MAP_SIDE).
    """
    earlier, later = tee((frame, _shrunk(frame)) for frame in frames)
    next(later)
    for (frame, grey), (_, grey_later) in zip(earlier, later):
        yield frame, _pooled_flow(grey, grey_later)[0] / (FLOW_SIDE * seconds)


def _measured(
    numbers: Sequence[int], images: Sequence[np.ndarray], fps: float, guesses: List[Piece]
) -> Iterator[Piece]:
    """The pieces from the first frame to the last: one, if flow connects these, else those of the two halves. What flow
    does not connect, but looks related, is added to `guesses`."""
    shift, trusted = _shift(images[0], images[-1])
    piece = Piece(numbers[0], numbers[-1], shift * fps / (numbers[-1] - numbers[0]))
    if trusted:
        yield piece
    elif len(numbers) > 2:
        half = len(numbers) // 2
        yield from _measured(numbers[: half + 1], images[: half + 1], fps, guesses)
        yield from _measured(numbers[half:], images[half:], fps, guesses)
    else:
        correlation = _correlation(images[0], images[-1])
        if correlation > ALIKE:
            yield piece._replace(score=None)
        elif correlation > RELATED and _texture(images[0]) > LEAST_TEXTURE**2:
            guesses.append(piece)


def _shrunk(frame: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) to float32 (h', w') grey with a shortest side of FLOW_SIDE."""
    import cv2

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) * GREY_SCALE
    return cv2.GaussianBlur(_to_shortest_side(grey, FLOW_SIDE), (0, 0), SOFTNESS)


def _shift(earlier: np.ndarray, later: np.ndarray) -> Tuple[float, bool]:
    """(mean length of the pooled flow between two grey images in shortest sides, whether it can be trusted)."""
    pooled, trusted = _pooled_flow(earlier, later)
    lengths = np.hypot(pooled[..., 0], pooled[..., 1])
    return float(np.where(lengths < LEAST_SHIFT, 0.0, lengths).mean()) / FLOW_SIDE, trusted


def _pooled_flow(earlier: np.ndarray, later: np.ndarray) -> Tuple[np.ndarray, bool]:
    """(the flow between two grey images in pixels, (h', w', 2) with a shortest side of MAP_SIDE, whether it can be
    trusted)."""
    import cv2

    flow = _flow(earlier, later)
    area = _agreeing_area(earlier, later, flow, _flow(later, earlier))
    if area < TRUSTED_AREA:
        window = cv2.createHanningWindow(earlier.shape[::-1], cv2.CV_32F)
        start = np.float32(cv2.phaseCorrelate(earlier, later, window)[0])
        guided = _flow(earlier, later, start)
        guided_area = _agreeing_area(earlier, later, guided, _flow(later, earlier, -start))
        flow, area = max((flow, area), (guided, guided_area), key=lambda found: found[1])
    return _to_shortest_side(flow, MAP_SIDE), area >= TRUSTED_AREA


def _correlation(earlier: np.ndarray, later: np.ndarray) -> float:
    """Of the grey levels of two pictures; 0 if one of them is blank."""
    blank = np.ptp(earlier) == 0 or np.ptp(later) == 0
    return 0.0 if blank else float(np.corrcoef(earlier.ravel(), later.ravel())[0, 1])


def _flow(earlier: np.ndarray, later: np.ndarray, start: Optional[np.ndarray] = None) -> np.ndarray:
    """Farneback's flow, (h, w, 2) in pixels; `start`: a shift (x, y) to search from."""
    import cv2

    if start is None:
        return cv2.calcOpticalFlowFarneback(earlier, later, None, **FARNEBACK)
    initial = np.broadcast_to(start, (*earlier.shape, 2)).copy()
    options = {**FARNEBACK, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    return cv2.calcOpticalFlowFarneback(earlier, later, initial, **options)


def _agreeing_area(earlier: np.ndarray, later: np.ndarray, forth: np.ndarray, back: np.ndarray) -> float:
    """The share of the picture, of what stays in view, that flow takes forth and back to where it was; 0 if the picture
    has less texture than flow leaves of its change."""
    import cv2

    height, width = earlier.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + forth[..., 0], y + forth[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    if not inside.any():
        return 0.0
    left = (earlier - cv2.remap(later, x, y, cv2.INTER_LINEAR))[inside]
    change, left = (np.mean(np.square(levels / GREY_SCALE)) for levels in (later - earlier, left))
    if change > LEAST_CHANGE**2 and _texture(earlier) < left + LEAST_TEXTURE**2:
        return 0.0
    missed = forth + cv2.remap(back, x, y, cv2.INTER_LINEAR)
    allowed = RETURN_PIXELS + RETURN_SHARE * np.hypot(forth[..., 0], forth[..., 1])
    returns = inside & (np.hypot(missed[..., 0], missed[..., 1]) < allowed)
    return float(returns.sum() / inside.sum())


def _texture(grey: np.ndarray) -> float:
    """How much a picture changes to all sides, in squared grey levels a pixel."""
    import cv2

    return float(np.mean(cv2.cornerMinEigenVal(grey, TEXTURE_SIDE))) / GREY_SCALE**2


def _to_shortest_side(image: np.ndarray, side: int) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR)
