"""A video file as RGB frames at asked-for presentation times, by seeking instead of decoding from the start."""

import os
from bisect import bisect_left
from collections import deque
from contextlib import contextmanager
from itertools import chain, islice
from typing import Deque, Iterable, Iterator, NamedTuple, Optional, Sequence, Tuple

import av
import numpy as np

from gm.files import PathLike, open_input, reason

# How far before the asked time a second, third … seek goes when the first one lands too late (open groups of
# pictures, MPEG-TS); the last resort is the start of the file.
SEEK_BACK_SECONDS = (0.0, 2.0, 10.0)
# Codecs whose packets say that no other frame refers to theirs: such frames need no decoding unless they are shown.
# (In HEVC the mark holds within a temporal layer only.)
SKIPPABLE_CODECS = ("h264",)
# A file may be nothing else: no list of other files and addresses (HLS, DASH, concat, SDP), no pattern of names.
FORMATS = "asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,nut,ogg,rm,yuv4mpegpipe"
ONLY_THIS_FILE = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
MIN_FPS, MAX_FPS, MAX_SECONDS, MAX_ASPECT = 1 / 30, 1000, 24 * 3600, 20
MAX_FRAMES_PER_BYTE = 1  # even of an empty packet the file says where it is
NEIGHBOURS = 32  # packets ahead and behind that are searched for a frame shown instead; beyond any reordering


class VideoError(Exception):
    """A file that cannot be read as a video, or ends before an asked-for time; one line that names the file."""


class _Extent(NamedTuple):
    num_frames: int  # frames that are shown
    fps: float  # their average rate, 1/s


class VideoReader:
    """An open video: its rate, count and size, and the frames at given times.

    Time is in seconds and starts at 0 with the first frame shown. On the grid `i / fps` a video of constant rate gives
    frame i exactly; one of variable rate gives the frame that a player would show then (within half a mean frame
    interval, so that rounded time stamps do not shift the choice).

    Files whose header counts the frames (mp4, mov, avi) are not read beyond what is decoded; for others (mkv, webm,
    mpeg-ts, fragmented mp4) the rate is measured once by reading the packets, without decoding, when first asked for.

    Attributes:
        size: (height, width) in pixels of the frames returned: rotated as the file says, with square pixels.
    """

    def __init__(self, path: PathLike, threads: int = 1):
        """Opens the file and decodes its first frame.

        Args:
            path: the video.
            threads: decoder threads; 1 suits readers that run side by side in worker processes, 0 is one per core.

        Raises:
            VideoError: no such file, no video in it, or its first frame cannot be decoded.
        """
        self.path = os.fspath(path)
        self._extent: Optional[_Extent] = None
        with self._explained():
            open_input(self.path).close()
            self._container = av.open(f"file:{self.path}", options=ONLY_THIS_FILE, metadata_errors="ignore")
        try:
            with self._explained():
                self._stream = self._container.streams.best("video")
                if self._stream is None or self._stream.codec_context is None:  # of an unknown codec
                    raise VideoError(f"{self.path}: holds no video of a known kind")
                self._stream.codec_context.thread_count = threads
                first = next(self._decode(), None)
            if first is None:
                raise VideoError(f"{self.path}: holds no frame")
            self._origin: int = first.pts
            self.size: Tuple[int, int] = self._upright(first).shape[:2]
        except Exception:
            self.close()
            raise

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

        One seek to the key frame before the first time, then one pass: at most one frame is held.

        Raises:
            VideoError: as in :meth:`read`, when the frame concerned is reached.
        """
        tolerance = 0.5 / self.fps
        limits = [self._origin + int((time + tolerance) / self._stream.time_base) for time in times]  # in stream units
        with self._explained():
            decoded = self._decode_towards(limits)
            shown = next(decoded, None)
            following = next(decoded, None)
            for time, limit in zip(times, limits):
                while following is not None and following.pts <= limit:
                    shown, following = following, next(decoded, None)
                if shown is None or (following is None and self._end(shown) < time + tolerance):
                    raise VideoError(f"{self.path}: ends before {time:.2f} s, where a frame was expected")
                if shown.is_corrupt:
                    raise VideoError(f"{self.path}: the frame at {time:.2f} s is damaged")
                image = self._upright(shown)
                if image.shape[:2] != self.size:
                    raise VideoError(f"{self.path}: the frame size changes at {time:.2f} s")
                yield image

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _decode_towards(self, limits: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Decodes from the last frame at or before the first of the ascending presentation times on, or from earlier.

        Frames of which none is the last at or before one of `limits` may be missing.
        """
        for back in SEEK_BACK_SECONDS if limits else ():
            offset = limits[0] - int(back / self._stream.time_base)
            if offset <= self._origin:
                break
            self._container.seek(offset, stream=self._stream, backward=True)
            frames = self._decode_sparsely(limits)
            first = next(frames, None)
            if first is not None and first.pts <= limits[0]:
                yield first
                yield from frames
                return
        self._rewind()
        yield from self._decode_sparsely(limits)

    def _decode_sparsely(self, limits: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Decodes on from here, leaving out what is neither shown nor referred to; see `_decode_towards`."""
        codec = self._stream.codec_context
        if codec.name not in SKIPPABLE_CODECS:
            yield from self._decode()
            return
        behind: Deque[Optional[int]] = deque(maxlen=NEIGHBOURS)  # presentation times
        ahead: Deque[av.Packet] = deque()
        packets = self._container.demux(self._stream)
        try:
            while True:
                ahead.extend(islice(packets, NEIGHBOURS + 1 - len(ahead)))
                if not ahead:
                    return
                packet = ahead.popleft()
                neighbours = chain(behind, (other.pts for other in ahead))
                codec.skip_frame = "DEFAULT" if _is_shown(packet.pts, neighbours, limits) else "NONREF"
                behind.append(packet.pts)
                yield from self._frames(packet)
        finally:
            codec.skip_frame = "DEFAULT"

    def _rewind(self) -> None:
        self._container.seek(min(self._origin, 0), stream=self._stream, backward=True)

    def _decode(self) -> Iterator[av.VideoFrame]:
        for packet in self._container.demux(self._stream):
            yield from self._frames(packet)

    def _frames(self, packet: av.Packet) -> Iterator[av.VideoFrame]:
        if packet.is_corrupt:
            raise VideoError(f"{self.path}: is damaged or cut off")
        for frame in packet.decode():
            if frame.pts is None:
                raise VideoError(f"{self.path}: its frames have no presentation times; convert it to mp4")
            yield frame

    def _measured(self) -> _Extent:
        if self._extent is None:
            with self._explained():
                extent = self._from_header() or self._from_packets()
            if not MIN_FPS <= extent.fps <= MAX_FPS:
                raise VideoError(f"{self.path}: has no frame rate, or one outside {MIN_FPS:.3f} to {MAX_FPS}")
            if not 0 < extent.num_frames <= MAX_FRAMES_PER_BYTE * os.path.getsize(self.path):
                raise VideoError(f"{self.path}: says that it has {extent.num_frames} frames, more than it has room for")
            if extent.num_frames / extent.fps > MAX_SECONDS:
                raise VideoError(f"{self.path}: says that it lasts more than {MAX_SECONDS // 3600} hours")
            self._extent = extent
        return self._extent

    def _from_header(self) -> Optional[_Extent]:
        stream = self._stream
        if not (stream.frames and stream.duration and stream.average_rate):
            return None
        shown = round(stream.duration * stream.time_base * stream.average_rate)  # less where an edit list trims
        return _Extent(min(stream.frames, shown), float(stream.average_rate))

    def _from_packets(self) -> _Extent:
        self._rewind()
        num_frames, end = 0, self._origin
        for packet in self._container.demux(self._stream):
            if packet.size and packet.pts is not None and not packet.is_discard:
                num_frames += 1
                end = max(end, packet.pts + (packet.duration or 0))
        seconds = float((end - self._origin) * self._stream.time_base)
        return _Extent(num_frames, num_frames / seconds if seconds > 0.0 else 0.0)

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        """One decoded frame as uint8 (h, w, 3) in RGB, with square pixels, turned as the file says."""
        width = max(1, round(frame.width * (self._stream.sample_aspect_ratio or 1)))
        if not 1 / MAX_ASPECT <= width / frame.height <= MAX_ASPECT:
            raise VideoError(f"{self.path}: is more than {MAX_ASPECT} times as wide as high, or as high as wide")
        rgb = frame.reformat(width=width, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, k=round(frame.rotation / 90)))  # degrees counter-clockwise

    def _time(self, frame: av.VideoFrame) -> float:
        return float((frame.pts - self._origin) * self._stream.time_base)

    def _end(self, frame: av.VideoFrame) -> float:
        length = float((frame.duration or 0) * self._stream.time_base)
        return self._time(frame) + max(length, 1.0 / self.fps)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns the decoder library's errors into a VideoError that names the file."""
        try:
            yield
        except av.ArgumentError as error:  # so a file is refused whose content is none of FORMATS
            raise VideoError(f"{self.path}: holds no video of a known kind") from error
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: {error.strerror or error}") from error
        except OSError as error:
            raise VideoError(f"{self.path}: {reason(error)}") from error


def _is_shown(pts: Optional[int], neighbours: Iterable[Optional[int]], limits: Sequence[int]) -> bool:
    """Whether a frame may be the last one at or before one of the ascending `limits`, or comes after them all."""
    i = 0 if pts is None else bisect_left(limits, pts)
    if pts is None or i == len(limits):
        return True
    return not any(other is not None and pts < other <= limits[i] for other in neighbours)
