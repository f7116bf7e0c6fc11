"""Folders of photographs: what is in them, and which are held out for evaluation."""

import hashlib
from pathlib import Path
from typing import List

import numpy as np
from PIL import Image

from data.file_search import IMAGE_SUFFIXES, name_passed_over
from data.image_reader import read_image
from gm.errors import UserError
from gm.files import PathLike

SPLITS = ("train", "eval", "all")
MAX_ASPECT = 20
HELD_OUT_SHARE = 16  # one photograph in sixteen is held out


def held_out(path: Path) -> bool:
    """Whether a photograph is kept apart from training, now and on every machine.

    A folder named `train` or `eval` on its path decides (the last one counts); elsewhere the SHA-256 of the file's
    name without its suffix does, so that no photograph changes sides when others come or go.
    """
    for folder in reversed(path.parts[:-1]):
        if folder in ("train", "eval"):
            return folder == "eval"
    return name_held_out(path.stem)


def name_held_out(name: str) -> bool:
    """Whether the SHA-256 of a photograph's name falls to the held-out share."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def find_photos(folder: PathLike, split: str, flag: str) -> List[Path]:
    """The photographs of one side in a folder and its subfolders, sorted by path.

    Args:
        folder: where to look; hidden files and folders are passed over.
        split: "train", "eval" or "all".
        flag: the command-line flag that named the folder, for the error line.

    Raises:
        UserError: no such folder, or no photograph of that side in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{flag}: {folder} is no folder; name one that holds photographs")
    found, others = [], []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or not path.is_file():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            others.append(path)
        elif split == "all" or held_out(inside) == (split == "eval"):
            found.append(path)
    name_passed_over(others, folder)
    if not found:
        side = "" if split == "all" else f" for --split {split}"
        raise UserError(f"{flag}: no photograph{side} in {folder}; it needs files ending in {' '.join(IMAGE_SUFFIXES)}")
    return found


def read_photo(path: PathLike, max_side: int) -> np.ndarray:
    """Reads a photograph upright in sRGB and shrinks it (antialiased) until its longer side is at most `max_side`.

    Returns:
        (h, w, 3) uint8.

    Raises:
        UserError: see :func:`data.image_reader.read_image`; or it is a strip, whose depth map would be as long.
    """
    image = read_image(path)
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UserError(f"cannot use the photograph {path}: a side is more than {MAX_ASPECT} times the other; crop it")
    scale = max_side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
