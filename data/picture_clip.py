"""Pictures as a clip: an animated GIF, PNG, WebP or AVIF file, or a folder of numbered frames."""

import os
from bisect import bisect_right
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import Callable, Iterator, Optional, Sequence, Tuple

import numpy as np
from PIL import UnidentifiedImageError

from data.file_search import numbered_frames
from data.image_reader import ANIMATIONS, explained, open_image, read_image, to_rgb
from data.video_container import Extent, VideoError
from gm.errors import UserError
from gm.files import PathLike, open_input, reason

# Browsers show a frame for 100 ms that asks for 10 ms or less, as old files do that mean "as fast as you can".
SHORTEST_MS, INSTEAD_MS = 10, 100


class PictureClip:
    """Frames that are read by their numbers, each shown up to its time.

    Attributes:
        size: (height, width) in pixels of the first frame.
    """

    def __init__(
        self, path: PathLike, ends: Sequence[float], read: Callable[[int], np.ndarray], close: Callable[[], None]
    ) -> None:
        """Reads the first frame.

        Args:
            path: for errors.
            ends: the times in seconds, ascending, up to which the frames are shown.
            read: gives the frame of a number, uint8 (h, w, 3) in RGB; raises UserError.
            close: closes what `read` uses.
        """
        self._path, self._ends, self._read, self.close = path, ends, read, close
        self._number, self._image = 0, self._frame(0)
        self.size: Tuple[int, int] = self._image.shape[:2]

    def extent(self) -> Extent:
        """Number of frames and their mean rate."""
        return Extent(len(self._ends), len(self._ends) / self._ends[-1])

    def shown_at(self, times: Sequence[float]) -> Iterator[Optional[np.ndarray]]:
        """See :meth:`data.video_container.VideoContainer.shown_at`."""
        for time in times:
            number = bisect_right(self._ends, time)
            if number == len(self._ends):
                yield None
                continue
            if number != self._number:
                self._number, self._image = number, self._frame(number)
            yield self._image

    def _frame(self, number: int) -> np.ndarray:
        with _explained(self._path):
            return self._read(number)


def open_animation(path: PathLike) -> Optional[PictureClip]:
    """An animated picture file, white where it is transparent; None for a file of another kind.

    Raises:
        VideoError: it cannot be read, or is a still picture.
    """
    try:
        file = open_input(path)
    except OSError as error:
        raise VideoError(f"{os.fspath(path)}: {reason(error)}") from error
    with ExitStack() as opened, _explained(path):
        opened.enter_context(file)
        try:
            image = open_image(file, ANIMATIONS)
        except UnidentifiedImageError:
            return None
        if not getattr(image, "is_animated", False):
            raise VideoError(f"{os.fspath(path)}: is a still picture, not a video")
        first, ends = _schedule(os.fspath(path), os.fstat(file.fileno()).st_mtime_ns)

        def read(number: int) -> np.ndarray:
            image.seek(first + number)
            return to_rgb(image, path)

        return PictureClip(path, ends, read, opened.pop_all().close)


def open_numbered_frames(path: PathLike, fps: float) -> PictureClip:
    """A folder of pictures with numbers in their names; what else is in it does not matter.

    Raises:
        VideoError: there are none.
    """
    paths = numbered_frames(path)
    if not paths:
        raise VideoError(f"{os.fspath(path)}: is a folder without numbered frames; name a video")
    ends = [(number + 1) / fps for number in range(len(paths))]
    return PictureClip(path, ends, lambda number: read_image(paths[number]), ExitStack().close)


@lru_cache(maxsize=4096)  # because each clip of a video opens it anew
def _schedule(path: str, changed_ns: int) -> Tuple[int, Tuple[float, ...]]:
    """(number of the first frame in an animated picture, the times in seconds up to which each is shown)."""
    del changed_ns  # part of the key
    with open_input(path) as file:
        image = open_image(file, ANIMATIONS)
        first = int(bool(image.info.get("default_image")))  # of an APNG: shown where animations are not known
        seconds = []
        for number in range(first, image.n_frames):
            image.seek(number)
            image.load()
            shown_ms = image.info.get("duration") or 0
            seconds.append((shown_ms if shown_ms > SHORTEST_MS else INSTEAD_MS) / 1000)
    return first, tuple(accumulate(seconds))


@contextmanager
def _explained(path: PathLike) -> Iterator[None]:
    try:
        with explained(path):
            yield
    except UserError as error:
        raise VideoError(str(error)) from error
