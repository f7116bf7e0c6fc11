"""Renders a camera move over a photograph: without borders, without aliasing, equally sharp in every frame."""

from typing import NamedTuple, Tuple

import cv2
import numpy as np

from data.image_reader import fit_image
from svd_tiny.camera_moves import CameraMove, Depth, frame_to_scene, reach, with_speed
from svd_tiny.depth_map import WORK_WIDTH, DepthMap, flat_depth, soften

SUPERSAMPLING = 2  # the scene is sampled this many times as densely as the clip, in both directions
CELL = 4  # pixels from one exactly computed position to the next; sizes are multiples of it
FIT_ROUNDS = 10
MAX_TEAR = 0.6  # frames * parallax * gradient of the depth; 1 would tear the image
TOLERANCE = 0.25  # pixels by which a window may overstep; mirrored pixels fill them
MARGIN = 4  # pixels around what a clip shows, for the interpolation


class ClipSize(NamedTuple):
    """What all clips of a set share."""

    height: int
    width: int
    num_frames: int

    @property
    def aspect(self) -> float:
        return self.height / self.width


class Window(NamedTuple):
    """Frame 0's place in the photograph."""

    centre: complex  # x + iy in photograph pixels
    scale: float  # photograph pixels per frame width

    def contains(self, reached: Tuple[float, float, float, float], photo_shape: Tuple[int, ...]) -> bool:
        """Whether all positions of a :func:`reach` lie in the photograph."""
        left, top, right, bottom = self.pixels(reached)
        inside = min(left, top, photo_shape[1] - right, photo_shape[0] - bottom)
        return inside > -TOLERANCE

    def pixels(self, reached: Tuple[float, float, float, float]) -> Tuple[float, float, float, float]:
        """A :func:`reach` in photograph pixels."""
        x, y = self.centre.real, self.centre.imag
        left, top, right, bottom = (self.scale * value for value in reached)
        return x + left, y + top, x + right, y + bottom


class Shot(NamedTuple):
    """A move fitted into a photograph."""

    move: CameraMove
    depth: Depth
    window: Window


def fit_shot(
    photo_shape: Tuple[int, ...],
    depth_values: np.ndarray,
    move: CameraMove,
    speed: float,
    size: ClipSize,
    rng: np.random.Generator,
) -> Shot:
    """Finds a window from which a move at a given speed stays inside the photograph.

    Args:
        photo_shape: (h, w, …) of the photograph.
        depth_values: (h', w') of the whole photograph, 0..1.
        move: the move; its pace does not matter.
        speed: mean displacement from frame to frame, in frame widths.
        size: of the clip.
        rng: where size and place of the window come from.

    Returns:
        the shot; the window is shrunk and shifted as far as the move needs.
    """
    widest = min(photo_shape[1], photo_shape[0] / size.aspect)
    scale = widest * rng.uniform(0.7, 1.0)
    half = complex(scale, scale * size.aspect) / 2
    centre = complex(
        rng.uniform(half.real, photo_shape[1] - half.real), rng.uniform(half.imag, photo_shape[0] - half.imag)
    )
    window = Window(centre, scale)
    for _ in range(FIT_ROUNDS):
        depth = _depth_around(window, photo_shape, depth_values, move, speed, size)
        paced = with_speed(move, depth, size.num_frames, size.aspect, speed)
        reached = reach(paced, depth, size.num_frames, size.aspect)
        if window.contains(reached, photo_shape):
            break
        window = _moved_inside(window, reached, photo_shape)
    return Shot(paced, depth, window)


def render(photo: np.ndarray, shot: Shot, size: ClipSize) -> np.ndarray:
    """Renders a shot.

    What lies beyond the photograph's border (nothing, after :func:`fit_shot`) is its mirror image.

    Args:
        photo: (h, w, 3) uint8.
        shot: the move and its place.
        size: of the clip.

    Returns:
        (t, h, w, 3) uint8.
    """
    texture, origin, density = _texture(photo, shot, size)
    frames = np.empty((size.num_frames, size.height, size.width, 3), np.uint8)
    for index in range(size.num_frames):
        offset = _scene_positions(shot, index, size) - origin  # from the corner of the texture, in frame widths
        fine = cv2.remap(
            texture,
            (offset.real * density[0] - 0.5).astype(np.float32),
            (offset.imag * density[1] - 0.5).astype(np.float32),
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        frames[index] = fit_image(fine, size.height, size.width)
    return frames


def _scene_positions(shot: Shot, frame: int, size: ClipSize) -> np.ndarray:
    """Which scene point each supersampled pixel of a frame shows: solved on a coarse grid, interpolated between."""
    rows, columns = size.height // CELL, size.width // CELL
    y, x = np.mgrid[-1 : rows + 1, -1 : columns + 1]  # one cell more on every side
    grid = (x + 0.5) / columns - 0.5 + 1j * size.aspect * ((y + 0.5) / rows - 0.5)
    coarse = frame_to_scene(shot.move, shot.depth, grid, frame)
    cell = CELL * SUPERSAMPLING
    parts = [
        cv2.resize(part, None, fx=cell, fy=cell, interpolation=cv2.INTER_LINEAR)[cell:-cell, cell:-cell]
        for part in (coarse.real, coarse.imag)
    ]
    return parts[0] + 1j * parts[1]


def _depth_around(
    window: Window,
    photo_shape: Tuple[int, ...],
    depth_values: np.ndarray,
    move: CameraMove,
    speed: float,
    size: ClipSize,
) -> Depth:
    """The depth map as the window sees it, as smooth as the move needs."""
    if not move.parallax:
        return flat_depth
    # No point of the scene runs ahead of the horizon by more than about twice the mean displacement of the clip.
    travel = 2 * speed * size.num_frames
    step = photo_shape[1] / WORK_WIDTH / window.scale
    left = -window.centre.real / window.scale
    top = -window.centre.imag / window.scale
    smooth = soften(depth_values.astype(np.float32), step, MAX_TEAR / max(travel, 1e-6))
    return DepthMap(smooth, left, top, step)


def _moved_inside(window: Window, reached: Tuple[float, float, float, float], photo_shape: Tuple[int, ...]) -> Window:
    """Shrinks the window if the move would leave the photograph wherever it starts, then shifts it."""
    left, top, right, bottom = reached
    height, width = photo_shape[:2]
    fitting = min(width / (right - left), height / (bottom - top)) * (1 - 1e-6)
    scale = min(window.scale, fitting * 0.98 if fitting < window.scale else window.scale)
    x = np.clip(window.centre.real, -left * scale, width - right * scale)
    y = np.clip(window.centre.imag, -top * scale, height - bottom * scale)
    return Window(complex(x, y), scale)


def _texture(photo: np.ndarray, shot: Shot, size: ClipSize) -> Tuple[np.ndarray, complex, Tuple[float, float]]:
    """The part of the photograph that the shot shows, scaled once with antialiasing.

    Where a move zooms, the scale is between what its widest and its narrowest frame need.

    Returns:
        the texture; where its upper left corner is, in frame widths; its pixels per frame width, across and down.
    """
    reached = reach(shot.move, shot.depth, size.num_frames, size.aspect)
    left, top, right, bottom = shot.window.pixels(reached)
    height, width = photo.shape[:2]
    x0, y0 = max(0, int(left) - MARGIN), max(0, int(top) - MARGIN)
    x1, y1 = min(width, int(np.ceil(right)) + MARGIN), min(height, int(np.ceil(bottom)) + MARGIN)
    widening = np.exp(max(0.0, -(shot.move.rate.real + shot.move.dolly / 2) * (size.num_frames - 1)))
    wanted = size.width * SUPERSAMPLING / np.sqrt(widening)  # texture pixels per frame width
    shrink = min(1.0, wanted / shot.window.scale)
    columns, rows = max(1, round((x1 - x0) * shrink)), max(1, round((y1 - y0) * shrink))
    texture = photo[y0:y1, x0:x1]
    if shrink < 1:
        texture = cv2.resize(texture, (columns, rows), interpolation=cv2.INTER_AREA)
    origin = (complex(x0, y0) - shot.window.centre) / shot.window.scale
    scale = shot.window.scale
    return texture, origin, (scale * texture.shape[1] / (x1 - x0), scale * texture.shape[0] / (y1 - y0))
