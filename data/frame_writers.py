"""Frames as an animated GIF or WebP, or as numbered PNG files, each with a text beside the pixels."""

from typing import List

import numpy as np
from PIL import Image, PngImagePlugin

from data.image_reader import open_image
from gm.files import PathLike, atomic_dir, atomic_file, open_input

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
    with atomic_file(path) as temporary:
        images[0].save(
            temporary,
            save_all=True,
            append_images=images[1:],
            duration=_durations(len(frames), fps, GIF_TICK_MS),
            loop=0,
            comment=comment.encode(),
        )


def write_webp(frames: np.ndarray, path: PathLike, fps: float, comment: str) -> None:
    """Writes an endless lossless WebP animation, the text as EXIF's description; otherwise as :func:`write_gif`.

    Frames that are all equal become a still image.
    """
    images = [Image.fromarray(frame) for frame in frames]
    exif = Image.Exif()
    exif[EXIF_IMAGE_DESCRIPTION] = comment
    with atomic_file(path) as temporary:
        images[0].save(
            temporary,
            save_all=True,
            append_images=images[1:],
            duration=_durations(len(frames), fps, 1),
            loop=0,
            lossless=True,
            exif=exif,
        )


def write_pngs(frames: np.ndarray, path: PathLike, fps: float, comment: str) -> None:
    """Writes a new folder with 00000.png, 00001.png, …; `fps` has no place in them. Otherwise as :func:`write_gif`."""
    del fps
    text = PngImagePlugin.PngInfo()
    text.add_text(COMMENT_KEY, comment)
    with atomic_dir(path) as temporary:
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(temporary / f"{index:05d}.png", pnginfo=text)


def read_image_comment(path: PathLike) -> str:
    """The text that the functions above put into a GIF, WebP or PNG file, "" without one.

    Raises:
        OSError: the file is missing or no image.
    """
    with open_input(path) as file, open_image(file) as image:
        if image.format == "PNG":
            image.load()  # text may follow the pixels
            return str(image.info.get(COMMENT_KEY, ""))
        if image.format == "GIF":
            return bytes(image.info.get("comment", b"")).decode("utf-8", "replace")
        return str(image.getexif().get(EXIF_IMAGE_DESCRIPTION, ""))


def _durations(num_frames: int, fps: float, tick_ms: int) -> List[int]:
    """Milliseconds per frame, multiples of `tick_ms`, whose running sum never strays from the true time by a tick."""
    ends = [round((index + 1) * 1000 / fps / tick_ms) for index in range(num_frames)]
    return [(end - start) * tick_ms for start, end in zip([0, *ends], ends)]


def _shared_palette(frames: np.ndarray) -> Image.Image:
    """A palette image for all frames (t, h, w, 3), chosen from evenly spaced pixels of each."""
    step = max(1, round((frames[..., 0].size / PALETTE_PIXELS) ** 0.5))
    sample = frames[:, ::step, ::step]  # t h w c
    return Image.fromarray(sample.reshape(-1, *sample.shape[2:])).quantize(
        GIF_COLOURS, kmeans=1
    )  # t h w c -> (t h) w c
