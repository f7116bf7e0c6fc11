"""What each clip of a set shows: planned from a seed and the clip's number alone, in any order, on any machine."""

import math
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

import numpy as np

from data.motion import SCORE_SCALE
from gm.errors import UserError
from svd_tiny.camera_moves import DEFAULT_WEIGHTS, KINDS, draw_move
from svd_tiny.clip_renderer import ClipSize, Shot, fit_shot, render
from svd_tiny.depth_map import estimate_depth
from svd_tiny.photos import read_photo

GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples, modulo 1, cover 0..1 evenly from the first few on
MAX_PHOTO_SIDE = 1600
PORTRAIT_SHARE = 0.3  # of the depth maps that take the middle of the image to be near
DRAWS = 4  # moves tried for one that leaves the window sharp


class ClipPlan(NamedTuple):
    """One clip."""

    index: int
    photo: Path
    kind: str  # of `KINDS`
    speed: float  # mean displacement in shortest sides of the frame per second
    seed: int

    @property
    def name(self) -> str:
        return f"clip_{self.index:06d}"


def plan_clips(
    photos: Sequence[Path], count: int, weights: Dict[str, float], min_speed: float, max_speed: float, seed: int
) -> List[ClipPlan]:
    """Plans the first `count` clips of a set; more clips later leave the first ones as they are.

    Photographs take turns, in a new random order each time round; speeds are spread evenly over motion buckets.

    Args:
        photos: what to show.
        count: how many clips.
        weights: {kind: how often, in any unit}.
        min_speed, max_speed: in shortest sides of the frame per second; "static" has speed 0.
        seed: another seed plans another set.
    """
    kinds = [kind for kind in KINDS if weights.get(kind, 0) > 0]
    shares = np.array([weights[kind] for kind in kinds]) / sum(weights[kind] for kind in kinds)
    offset = np.random.default_rng([seed, 0]).random()
    plans: List[ClipPlan] = []
    order: List[int] = []
    for index in range(count):
        if index % len(photos) == 0:
            order = list(np.random.default_rng([seed, 1, index // len(photos)]).permutation(len(photos)))
        kind = str(np.random.default_rng([seed, 2, index]).choice(kinds, p=shares))
        level = (offset + index * GOLDEN_RATIO) % 1
        speed = 0.0 if kind == "static" else _spread(min_speed, max_speed, level)
        plans.append(ClipPlan(index, photos[order[index % len(photos)]], kind, speed, seed))
    return plans


def film(plan: ClipPlan, size: ClipSize, fps: float) -> np.ndarray:
    """Renders a planned clip.

    Returns:
        (t, h, w, 3) uint8.

    Raises:
        UserError: the photograph cannot be read.
    """
    rng = np.random.default_rng([plan.seed, 3, plan.index])
    photo = read_photo(plan.photo, MAX_PHOTO_SIDE)
    if rng.random() < 0.5:
        photo = np.ascontiguousarray(photo[:, ::-1])
    near_subject = rng.uniform(0.5, 1.0) if rng.random() < PORTRAIT_SHARE else 0.0
    depth = estimate_depth(photo, near_subject)
    return render(photo, _sharpest_shot(photo, depth, plan, size, fps, rng), size)


def parse_weights(text: str) -> Dict[str, float]:
    """Reads the weights of the moves from "zoom_in=2,pan=1"; kinds that are not named are left out, "" is the default.

    Raises:
        UserError: an unknown kind, a weight that is no number above 0, or none at all.
    """
    if not text:
        return dict(DEFAULT_WEIGHTS)
    weights = {}
    for item in text.split(","):
        kind, _, weight = (part.strip() for part in item.partition("="))
        if kind not in KINDS:
            raise UserError(f"--moves: {kind or 'an empty name'} is none of {', '.join(KINDS)}")
        try:
            weights[kind] = float(weight or 1)
        except ValueError:
            raise UserError(f"--moves: {weight} is no number; write {kind}=1, for example") from None
        if not 0 < weights[kind] < float("inf"):
            raise UserError(f"--moves: the weight of {kind} is {weight}; it must be above 0, or leave {kind} out")
    return weights


def _spread(low: float, high: float, level: float) -> float:
    """The speed at 0..1 of the way from one speed to another, even steps being even in motion buckets."""
    start, end = math.log1p(low / SCORE_SCALE), math.log1p(high / SCORE_SCALE)
    return SCORE_SCALE * math.expm1(start + (end - start) * level)


def _sharpest_shot(
    photo: np.ndarray, depth: np.ndarray, plan: ClipPlan, size: ClipSize, fps: float, rng: np.random.Generator
) -> Shot:
    """The first of a few draws whose window holds a photograph pixel for each pixel of the clip, or the largest."""
    speed = plan.speed * min(1.0, size.aspect) / fps  # frame widths per frame
    shots = []
    for _ in range(DRAWS):
        shot = fit_shot(photo.shape, depth, draw_move(plan.kind, rng), speed, size, rng)
        if shot.window.scale >= size.width:
            return shot
        shots.append(shot)
    return max(shots, key=lambda shot: shot.window.scale)
