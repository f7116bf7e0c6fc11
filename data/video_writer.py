"""Videos out: one call for every format, with the settings that made the video stored inside it."""

import json
from itertools import chain, count
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict

import numpy as np

from data.frame_writers import read_image_comment, write_gif, write_pngs, write_webp
from data.mp4_writer import read_mp4_comment, write_mp4
from gm.errors import UserError
from gm.files import PathLike, reason, reserved

GIF_MAX_FPS = 50  # viewers slow shorter delays than 20 ms down to 100 ms

WRITERS: Dict[str, Callable[[np.ndarray, PathLike, float, str], None]] = {
    "mp4": write_mp4,
    "gif": write_gif,
    "webp": write_webp,
    "png": write_pngs,
}


def check_video_format(video_format: str, fps: float) -> None:
    """Raises a UserError unless `video_format` is known and can show `fps` frames per second."""
    if video_format not in WRITERS:
        raise UserError(f"--output_format: {video_format} is none of {', '.join(WRITERS)}")
    if video_format == "gif" and fps > GIF_MAX_FPS:
        raise UserError(
            f"--output_format: gif shows at most {GIF_MAX_FPS} frames per second not {fps} (--SVD.fps); use mp4 or webp"
        )


def new_video_path(folder: PathLike, stem: str, video_format: str) -> ContextManager[Path]:
    """A path in `folder` that does not exist yet, and that no other process gets while the context lasts: `stem` with
    the format's suffix (none for png, which is a folder), and _2, _3, … where that is taken."""
    suffix = "" if video_format == "png" else f".{video_format}"
    return reserved(Path(folder) / f"{stem}{end}{suffix}" for end in chain([""], map("_{}".format, count(2))))


def write_video(frames: np.ndarray, path: PathLike, fps: float, metadata: Dict[str, Any], video_format: str) -> None:
    """Writes a video whole or not at all.

    Args:
        frames: (t, h, w, 3) uint8, RGB, at least one.
        path: the file to write; for png a folder that does not exist or is empty.
        fps: frames per second, above 0.
        metadata: what JSON can hold; :func:`read_metadata` gives it back.
        video_format: "mp4" (H.264, near lossless, odd sizes padded to even ones), "gif" (255 colours), "webp"
            (lossless) or "png" (a folder of numbered frames, lossless).

    Raises:
        UserError: unknown format, a frame rate that it cannot show, or the file cannot be written.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames must be (t, h, w, 3) uint8, got {frames.shape} {frames.dtype}")
    check_video_format(video_format, fps)
    WRITERS[video_format](frames, path, fps, json.dumps(metadata))


def read_metadata(path: PathLike) -> Dict[str, Any]:
    """The settings that :func:`write_video` stored in a file, or in the frames of a folder.

    Raises:
        UserError: the file cannot be read or holds no settings.
    """
    path = Path(path)
    try:
        file = min(path.glob("*.png"), default=path) if path.is_dir() else path
        comment = read_mp4_comment(file) if file.suffix.lower() == ".mp4" else read_image_comment(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    try:
        settings = json.loads(comment)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings; this toolkit did not write it, or another program dropped them")
    return settings
