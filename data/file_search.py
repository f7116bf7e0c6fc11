"""Which files of a folder are images or videos, by their suffixes; a file named directly may have any.

What a search passes over is named in the log.
"""

import logging
import os
import re
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

from data.image_reader import is_animation
from gm.errors import UserError
from gm.files import PathLike, reason

logger = logging.getLogger(__name__)

ANIMATION_SUFFIXES = (".apng", ".avif", ".gif", ".png", ".webp")  # of images that may move
IMAGE_SUFFIXES = (
    *ANIMATION_SUFFIXES, ".bmp", ".dib", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff",
)  # fmt: skip
VIDEO_SUFFIXES = (
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf",
    ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt",
    ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
FRAMES_FPS = 24.0  # of a folder of numbered frames whose rate nobody states
FRAME_NAME = re.compile(r"(.*?)(\d+)(\D*)")  # of a numbered picture without its suffix
MAX_NAMES, MAX_WORDS = 3, 12  # of files passed over: names of one suffix, and names and suffixes in all


def find_images(path: PathLike, flag: str = "--image") -> List[Path]:
    """The images that `path` stands for: itself if a file, those directly inside (sorted by name) if a folder.

    Args:
        path: a file or a folder; a leading `~` is the home folder.
        flag: the command-line flag that named it, for the error line.

    Raises:
        UserError: `path` does not exist, is no regular file or folder, cannot be listed, or holds no image.
    """
    path = Path(path).expanduser()
    try:
        if path.is_file():
            return [path]
        if not path.exists():
            raise UserError(f"{flag}: {path} does not exist; name an image file or a folder of images")
        if not path.is_dir():
            raise UserError(f"{flag}: {path} is neither a file nor a folder; name an image file or a folder of images")
        files = visible_files(path)
    except OSError as error:
        raise UserError(f"{flag}: cannot read {path}: {reason(error)}; name an image file or a folder") from error
    images = [file for file in files if _has_suffix(file, IMAGE_SUFFIXES)]
    if not images:
        raise UserError(f"{flag}: no image in the folder {path}; it needs a file ending in {' '.join(IMAGE_SUFFIXES)}")
    name_passed_over([file for file in files if not _has_suffix(file, IMAGE_SUFFIXES)], path)
    return images


def find_videos(folder: PathLike) -> List[Path]:
    """The videos in a folder and its subfolders, as paths from there, sorted: video files, pictures that move, and
    folders of numbered frames. Hidden files and folders do not count.
    """
    found: List[Path] = []
    others: List[Path] = []
    for parent, folders, _ in os.walk(folder, onerror=_name_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files, frames = visible_files(parent), set(numbered_frames(parent))
        found += [Path(parent)] if frames else []
        for path in files:
            if path not in frames:
                (found if _is_video(path) else others).append(path)
    name_passed_over(others, folder)
    return [path.relative_to(folder) for path in found]


def numbered_frames(folder: PathLike) -> List[Path]:
    """The pictures of a folder in the order of their numbers, if they are the frames of a clip: two or more, none of
    which moves, whose names differ in one number only, and no video beside them. Else none.
    """
    files = visible_files(folder)
    images = {path: FRAME_NAME.fullmatch(path.stem) for path in files if _has_suffix(path, IMAGE_SUFFIXES)}
    kinds = {match and (match[1], match[3], path.suffix.lower()) for path, match in images.items()}
    if len(images) < 2 or len(kinds) > 1 or None in kinds or _is_video(next(iter(images))):
        return []
    if any(_has_suffix(path, VIDEO_SUFFIXES) for path in files):
        return []
    return sorted(images, key=lambda path: int(images[path][2]))


def stamp(path: PathLike) -> List[int]:
    """[bytes, time of the last change in ns] of a file, or of the frames in a folder. Raises OSError."""
    found = list(map(os.stat, numbered_frames(path) if os.path.isdir(path) else [path]))
    return [sum(status.st_size for status in found), max((status.st_mtime_ns for status in found), default=0)]


def visible_files(folder: PathLike) -> List[Path]:
    """The files directly inside a folder, sorted by name, without hidden ones. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_file())


def name_passed_over(paths: Iterable[Path], folder: PathLike) -> None:
    """Says in the log which files a search of `folder` left aside: by name, or by suffix where they are many."""
    kinds: Dict[str, List[str]] = {}
    for path in paths:
        kinds.setdefault(path.suffix.lower(), []).append(path.name)
    words: List[str] = []
    for suffix, names in kinds.items():
        words += names if len(names) <= MAX_NAMES else [f"{len(names)} *{suffix}"]
    if words:
        count, more = sum(map(len, kinds.values())), ", …" if len(words) > MAX_WORDS else ""
        logger.warning(
            "passed over %d files of other kinds in %s: %s%s", count, folder, ", ".join(words[:MAX_WORDS]), more
        )


def _is_video(path: Path) -> bool:
    return _has_suffix(path, VIDEO_SUFFIXES) or (_has_suffix(path, ANIMATION_SUFFIXES) and is_animation(path))


def _has_suffix(path: Path, suffixes: Tuple[str, ...]) -> bool:
    return path.suffix.lower() in suffixes


def _name_unreadable(error: OSError) -> None:
    logger.warning("passed over the folder %s: %s", error.filename, reason(error))
