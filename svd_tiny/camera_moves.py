"""Camera moves of constant speed over a photograph that has depth.

Positions are complex numbers, x + iy with y downwards, in frame widths from the frame's centre. A scene point that
frame 0 shows at s stands in frame t at

    p(s, t) = exp(t A) (s + t D(s) (truck + dolly (s - focus))),    A p = rate (p - focus) + pan

where D is the depth map: 1 for what is nearest, 0 for the horizon. `rate` is zoom (real part) and rotation (imaginary
part), a factor per frame, so the field of velocities is the same in all frames; `pan`, `truck` and `dolly` are added
per frame. With D = 0 the move is the same for every point of the scene; `truck` and `dolly` are the parallax.
"""

from typing import Callable, Dict, NamedTuple, Tuple

import numpy as np

Depth = Callable[[np.ndarray], np.ndarray]  # complex positions -> depth, 0..1
FIXED_POINT_STEPS = 12
SPEED_GRID = (12, 20)  # rows and columns of points over which a move's speed is averaged
SPEED_STEPS = 6
SPEED_TOLERANCE = 1e-3  # relative

KINDS = ("static", "zoom_in", "zoom_out", "pan", "rotate", "truck", "dolly", "mixed", "pan_right")
# How often each kind is drawn, before --moves says otherwise; the others are made on request only.
DEFAULT_WEIGHTS: Dict[str, float] = {
    "static": 0.04,
    "zoom_in": 0.20,
    "zoom_out": 0.10,
    "pan": 0.20,
    "rotate": 0.04,
    "truck": 0.16,
    "dolly": 0.12,
    "mixed": 0.14,
}


class CameraMove(NamedTuple):
    """Motion per frame; see the module's docstring."""

    rate: complex = 0j  # real part: zoom, positive into the image; imaginary part: rotation
    pan: complex = 0j  # displacement of the whole image
    truck: complex = 0j  # displacement of what is nearest, relative to the horizon
    dolly: float = 0.0  # zoom of what is nearest, relative to the horizon
    focus: complex = 0j  # centre of zoom and rotation

    def scaled(self, factor: float) -> "CameraMove":
        """The same move, `factor` times as fast."""
        return CameraMove(self.rate * factor, self.pan * factor, self.truck * factor, self.dolly * factor, self.focus)

    @property
    def parallax(self) -> float:
        """How much farther than the horizon the nearest parts move per frame, at most over the frame, in widths."""
        return abs(self.truck) + abs(self.dolly) * (0.5 + abs(self.focus))


def scene_to_frame(move: CameraMove, depth: Depth, scene: np.ndarray, frame: float) -> np.ndarray:
    """Where scene points (their positions in frame 0, complex, any shape) stand in a frame."""
    moved = scene + frame * depth(scene) * _parallax_field(move, scene)
    growth, drift = _global_motion(move, frame)
    return move.focus + growth * (moved - move.focus) + drift


def frame_to_scene(move: CameraMove, depth: Depth, points: np.ndarray, frame: float) -> np.ndarray:
    """Which scene points a frame shows at `points`: the inverse of :func:`scene_to_frame`, by fixed-point iteration.

    It converges where frame * parallax * |gradient of the depth map| < 1; nothing is hidden or torn there.
    """
    growth, drift = _global_motion(move, frame)
    unmoved = move.focus + (points - drift - move.focus) / growth
    scene = unmoved
    if move.truck or move.dolly:
        for _ in range(FIXED_POINT_STEPS):
            scene = unmoved - frame * depth(scene) * _parallax_field(move, scene)
    return scene


def mean_speed(move: CameraMove, depth: Depth, num_frames: int, aspect: float) -> float:
    """Mean displacement from one frame to the next over the frame's area and the clip, in widths.

    Args:
        move: the move.
        depth: the scene's depth map.
        num_frames: frames of the clip; with fewer than two nothing moves.
        aspect: height over width.
    """
    rows, columns = SPEED_GRID
    y, x = np.mgrid[0:rows, 0:columns]
    grid = (x + 0.5) / columns - 0.5 + 1j * aspect * ((y + 0.5) / rows - 0.5)
    speeds = []
    for frame in range(num_frames - 1):
        scene = frame_to_scene(move, depth, grid, frame)
        speeds.append(np.abs(scene_to_frame(move, depth, scene, frame + 1) - grid).mean())
    return float(np.mean(speeds)) if speeds else 0.0


def with_speed(move: CameraMove, depth: Depth, num_frames: int, aspect: float, speed: float) -> CameraMove:
    """The move at the pace that gives it a mean speed, in widths per frame; 0 is no move at all."""
    if speed == 0:
        return CameraMove(focus=move.focus)
    for _ in range(SPEED_STEPS):
        measured = mean_speed(move, depth, num_frames, aspect)
        if abs(measured - speed) <= SPEED_TOLERANCE * speed:
            break
        move = move.scaled(speed / max(measured, 1e-12))
    return move


def reach(move: CameraMove, depth: Depth, num_frames: int, aspect: float) -> Tuple[float, float, float, float]:
    """(left, top, right, bottom) of all that the clip ever shows of the scene, in widths from the centre."""
    edge = np.linspace(-0.5, 0.5, 33)
    height = aspect * edge
    border = np.concatenate([edge - 0.5j * aspect, edge + 0.5j * aspect, -0.5 + 1j * height, 0.5 + 1j * height])
    seen = np.concatenate([frame_to_scene(move, depth, border, frame) for frame in range(num_frames)])
    return seen.real.min(), seen.imag.min(), seen.real.max(), seen.imag.max()


def draw_move(kind: str, rng: np.random.Generator) -> CameraMove:
    """A random move of one kind, at an arbitrary pace (see :func:`with_speed`).

    Args:
        kind: one of `KINDS`.
        rng: where the direction and the centre come from.
    """
    focus = complex(rng.uniform(-0.15, 0.15), rng.uniform(-0.08, 0.08))
    direction = np.exp(1j * rng.uniform(0, 2 * np.pi))
    side = rng.choice([-1.0, 1.0])
    if kind == "static":
        return CameraMove(focus=focus)
    if kind == "zoom_in":
        return CameraMove(rate=1 + 0j, focus=focus)
    if kind == "zoom_out":
        return CameraMove(rate=-1 + 0j, focus=focus)
    if kind == "pan":
        return CameraMove(pan=direction)
    if kind == "pan_right":  # the camera's direction: the image goes left
        return CameraMove(pan=-1 + 0j)
    if kind == "rotate":
        return CameraMove(rate=complex(rng.uniform(-0.3, 0.3), side), focus=focus)
    if kind == "truck":  # sideways with a little rise, the horizon going along at a part of the pace
        sideways = side + 1j * rng.uniform(-0.25, 0.25)
        return CameraMove(truck=sideways, pan=sideways * rng.uniform(0, 0.4))
    if kind == "dolly":
        return CameraMove(dolly=0.5 * side, rate=side * rng.uniform(0.3, 0.8) + 0j, focus=focus)
    if kind == "mixed":
        rate = complex(rng.uniform(-1, 1.5), rng.uniform(-0.4, 0.4))
        return CameraMove(rate, 0.3 * direction, rng.uniform(-0.4, 0.4) + 0j, rng.uniform(-0.3, 0.5), focus)
    raise ValueError(f"unknown kind of move {kind!r}")


def _parallax_field(move: CameraMove, scene: np.ndarray) -> np.ndarray:
    return move.truck + move.dolly * (scene - move.focus)


def _global_motion(move: CameraMove, frame: float) -> Tuple[complex, complex]:
    """exp(t A) as growth and drift: p = focus + growth (s - focus) + drift."""
    growth = np.exp(frame * move.rate)
    drift = move.pan * (frame if abs(move.rate) < 1e-9 else (growth - 1) / move.rate)
    return complex(growth), complex(drift)
