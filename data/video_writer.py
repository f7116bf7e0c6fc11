"""Videos out: one call for every format, with the settings that made the video stored inside it."""

import json
import warnings
from itertools import chain, count
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, Optional

import numpy as np
from PIL import Image, PngImagePlugin

from data.image_reader import DECODER_ERRORS
from data.mp4_writer import read_mp4_comment, write_mp4
from gm.errors import UserError
from gm.files import PathLike, atomic_dir, atomic_file, open_input, parse_json, reason, reserved

GIF_MAX_FPS = 50  # viewers slow shorter delays than 20 ms down to 100 ms
COMMENTED = ("GIF", "PNG", "WEBP")  # what the functions below write, beside mp4
COMMENT_KEY = "Comment"  # registered PNG text keyword
EXIF_IMAGE_DESCRIPTION = 0x010E
GIF_TICK_MS = 10  # GIF delays count hundredths of a second
GIF_COLOURS = 255  # of 256: one stays free for "as in the frame before"
PALETTE_PIXELS = 1 << 15  # the palette is chosen from about so many


def write_gif(frames: np.ndarray, path: PathLike, fps: float, comment: str) -> None:
    """Writes an endless GIF; all frames share one palette, so that still parts do not flicker.

    Equal neighbouring frames are stored once, shown for as long.

    Args:
        frames: (t, h, w, 3) uint8, RGB.
        path: the file to write; appears whole or not at all.
        fps: frames per second, above 0; delays are rounded to 10 ms so that their sum stays right.
        comment: text of the comment extension.

    Raises:
        UserError: the file cannot be written.
    """
    palette = _shared_palette(frames)
    images = [Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    _save_animation(images, path, _durations(len(frames), fps, GIF_TICK_MS), comment=comment.encode())


def write_webp(frames: np.ndarray, path: PathLike, fps: float, comment: str) -> None:
    """Writes an endless lossless WebP animation, the text as EXIF's description; otherwise as :func:`write_gif`.

    Frames that are all equal become a still image.
    """
    exif = Image.Exif()
    exif[EXIF_IMAGE_DESCRIPTION] = comment
    images = [Image.fromarray(frame) for frame in frames]
    _save_animation(images, path, _durations(len(frames), fps, 1), lossless=True, exif=exif)


def write_pngs(frames: np.ndarray, path: PathLike, fps: float, comment: str) -> None:
    """Writes a new folder with 00000.png, 00001.png, …; `fps` has no place in them. Otherwise as :func:`write_gif`."""
    del fps
    with atomic_dir(path) as temporary:
        for index, frame in enumerate(frames):
            _save_png(frame, temporary / f"{index:05d}.png", comment)


def write_picture(picture: np.ndarray, path: PathLike, metadata: Dict[str, Any]) -> None:
    """Writes a PNG, whole or not at all.

    Args:
        picture: (h, w, 3) uint8, RGB.
        metadata: what JSON can hold; :func:`read_metadata` gives it back.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_file(path) as temporary:
        _save_png(picture, temporary, json.dumps(metadata))


def _save_png(picture: np.ndarray, path: Path, comment: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text(COMMENT_KEY, comment)
    Image.fromarray(picture).save(path, format="PNG", pnginfo=text)


def read_image_comment(path: PathLike) -> str:
    """The text that the functions above put into a GIF, WebP or PNG file, "" without one.

    Raises:
        OSError: the file is missing or no image.
    """
    with warnings.catch_warnings(), open_input(path) as file:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its error, at twice the size, is enough
        image = Image.open(file, formats=COMMENTED)
        if image.format == "PNG":
            image.load()  # text may follow the pixels
            return str(image.info.get(COMMENT_KEY, ""))
        if image.format == "GIF":
            return bytes(image.info.get("comment", b"")).decode("utf-8", "replace")
        return str(image.getexif().get(EXIF_IMAGE_DESCRIPTION, ""))


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
    """A new path for a video: with the format's suffix, or none for png, which is a folder; see :func:`new_path`."""
    return new_path(folder, stem, "" if video_format == "png" else f".{video_format}")


def new_path(folder: PathLike, stem: str, suffix: str) -> ContextManager[Path]:
    """A path in `folder` that does not exist yet, and that no other process gets while the context lasts: `stem` with
    the suffix, and _2, _3, … before it where that is taken."""
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
    except (Image.DecompressionBombError, *DECODER_ERRORS) as error:
        raise UserError(f"cannot read {path}: it is damaged, or too large") from error
    try:
        settings = parse_json(comment)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings; this toolkit did not write it, or another program dropped them")
    return settings


def settings_in(path: PathLike) -> Optional[Dict[str, Any]]:
    """What :func:`read_metadata` gives for a video or an image, by its suffix; None for any other file.

    Raises:
        UserError: see there; or it says where to write, which only a user does.
    """
    if Path(path).suffix.lower() not in (".mp4", ".gif", ".webp", ".png"):
        return None
    settings = read_metadata(path)
    if "output_dir" in settings:
        raise UserError(f"{path} names a folder to write to, which this toolkit's own files do not; make it anew")
    return settings


def _save_animation(images: List[Image.Image], path: PathLike, durations: List[int], **options: Any) -> None:
    with atomic_file(path) as temporary:
        images[0].save(temporary, save_all=True, append_images=images[1:], duration=durations, loop=0, **options)


def _durations(num_frames: int, fps: float, tick_ms: int) -> List[int]:
    """Milliseconds per frame, multiples of `tick_ms`, whose running sum never strays from the true time by a tick."""
    ends = [round((index + 1) * 1000 / fps / tick_ms) for index in range(num_frames)]
    return [(end - start) * tick_ms for start, end in zip([0, *ends], ends)]


def _shared_palette(frames: np.ndarray) -> Image.Image:
    """A palette image for all frames (t, h, w, 3), chosen from evenly spaced pixels of each."""
    step = max(1, round((frames[..., 0].size / PALETTE_PIXELS) ** 0.5))
    sample = frames[:, ::step, ::step]  # t h w c
    rows = Image.fromarray(sample.reshape(-1, *sample.shape[2:]))  # t h w c -> (t h) w c
    return rows.quantize(GIF_COLOURS, kmeans=1)
