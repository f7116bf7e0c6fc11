"""A video as RGB frames at asked-for presentation times, whatever file or folder it is."""

import os
from typing import Iterator, Optional, Sequence, Tuple

import numpy as np

from data.file_search import FRAMES_FPS
from data.metadata_csv import MAX_FPS, MIN_FPS
from data.picture_clip import open_animation, open_numbered_frames
from data.video_container import Extent, VideoContainer, VideoError
from gm.files import PathLike

MAX_SECONDS = 24 * 3600


class VideoReader:
    """An open video: its rate, count and size, and the frames at given times.

    A video is a file of FFmpeg's formats, an animated GIF, PNG, WebP or AVIF file, or a folder of numbered frames.

    Time is in seconds and starts at 0 with the first frame shown. On the grid `i / fps` a video of constant rate gives
    frame i exactly; one of variable rate gives the frame that a player would show then (within half a mean frame
    interval, so that rounded time stamps do not shift the choice).

    Attributes:
        size: (height, width) in pixels of the frames returned: turned as the file says, with square pixels.
    """

    def __init__(self, path: PathLike, threads: int = 1, fps: float = FRAMES_FPS):
        """Opens the video and decodes its first frame.

        Args:
            path: the file or folder.
            threads: decoder threads; 1 suits readers that run side by side in worker processes, 0 is one per core.
            fps: of a folder of numbered frames, which has no rate of its own; others have theirs.

        Raises:
            VideoError: no such file, no video in it, or its first frame cannot be decoded.
        """
        self.path = os.fspath(path)
        self._extent: Optional[Extent] = None
        if os.path.isdir(path):
            self._source = open_numbered_frames(path, fps)
        else:
            self._source = open_animation(path) or VideoContainer(path, threads)
        self.size: Tuple[int, int] = self._source.size

    @property
    def fps(self) -> float:
        """Mean number of frames per second over the whole video."""
        return self._measured().fps

    @property
    def num_frames(self) -> int:
        """Number of points `i / fps` of the frame grid, which is the number of frames shown."""
        return self._measured().num_frames

    @property
    def duration(self) -> float:
        """Length in seconds, the last frame's own time included."""
        return self.num_frames / self.fps

    def read(self, times: Sequence[float]) -> np.ndarray:
        """The frames shown at ascending `times` (seconds), as uint8 (t, h, w, 3) in RGB.

        Raises:
            VideoError: the video ends before the last time, changes its size, or is damaged on the way there.
        """
        return np.stack(list(self.frames_at(times)))

    def read_clip(self, start: int, num_frames: int, step: int = 1) -> np.ndarray:
        """Every `step`-th frame of the grid from frame `start` on, as uint8 (num_frames, h, w, 3) in RGB."""
        return self.read([(start + i * step) / self.fps for i in range(num_frames)])

    def frames_at(self, times: Sequence[float]) -> Iterator[np.ndarray]:
        """Yields the frame, uint8 (h, w, 3) in RGB, shown at each of the ascending `times` in seconds.

        Raises:
            VideoError: as in :meth:`read`, when the frame concerned is reached.
        """
        tolerance = 0.5 / self.fps
        images = self._source.shown_at([time + tolerance for time in times])
        for time, image in zip(times, images):
            if image is None:
                raise VideoError(f"{self.path}: ends before {time:.2f} s, where a frame was expected")
            if image.shape[:2] != self.size:
                raise VideoError(f"{self.path}: the frame size changes at {time:.2f} s")
            yield image

    def close(self) -> None:
        """Closes the file."""
        self._source.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _measured(self) -> Extent:
        if self._extent is None:
            extent = self._source.extent()
            if not MIN_FPS <= extent.fps <= MAX_FPS:
                raise VideoError(f"{self.path}: has no frame rate, or one outside {MIN_FPS:.3f} to {MAX_FPS}")
            if extent.num_frames / extent.fps > MAX_SECONDS:
                raise VideoError(f"{self.path}: says that it lasts more than {MAX_SECONDS // 3600} hours")
            self._extent = extent
        return self._extent
