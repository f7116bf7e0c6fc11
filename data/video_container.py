"""A video file of FFmpeg's formats: its rate, its length, and the frames shown at given times, by seeking.

A frame is given as it is meant to be seen: turned and mirrored as the file's display matrix says, with square pixels,
deinterlaced, converted to RGB by the matrix that the file names or, in one that names none, by the one that players
take: BT.709 for high definition.
"""

import os
import struct
from bisect import bisect_left
from collections import deque
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from typing import Deque, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorTrc

from gm.files import PathLike, open_input, reason

# How far before the asked time a second, third … seek goes when the first one lands too late (open groups of
# pictures, MPEG-TS); the last resort is the start of the file.
SEEK_BACK_SECONDS = (0.0, 2.0, 10.0)
# Codecs whose packets say that no other frame refers to theirs: such frames need no decoding unless they are shown.
# (In HEVC the mark holds within a temporal layer only.)
SKIPPABLE_CODECS = ("h264",)
# A file may be nothing else: no list of other files and addresses (HLS, DASH, concat, SDP), no pattern of names.
FORMATS = "asf,avi,dv,flv,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,nut,ogg,rm,yuv4mpegpipe"
ONLY_THIS_FILE = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
NEIGHBOURS = 32  # packets ahead and behind that are searched for a frame shown instead; beyond any reordering
MOST_REORDERED = 16  # frames that a decoder may hold back: of H.264 and HEVC; so many may lack at the end of a cut
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image  # a song's cover
HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
UNSPECIFIED, BT709 = 2, 1  # matrices, ISO/IEC 23091-2
HD_HEIGHT, HD_WIDTH = 720, 1280  # from which on players take BT.709 where the file names no matrix
DEINTERLACER = ("bwdif", "mode=send_frame:deint=interlaced")  # a frame out for each frame in; half the unit of time
MAX_ASPECT, MAX_FRAMES_PER_BYTE = 20, 1  # even of an empty packet the file says where it is


class VideoError(Exception):
    """A file that cannot be read as a video, or ends before an asked-for time; one line that names the file."""


class Extent(NamedTuple):
    """How much video there is."""

    num_frames: int  # frames that are shown
    fps: float  # their average rate, 1/s


class VideoContainer:
    """An open video file.

    Files whose index counts the frames (mp4, mov, avi) are not read beyond what is decoded, unless they were cut
    without recoding; for others (mkv, webm, mpeg-ts, fragmented mp4) the packets are read once, without decoding.

    Where presentation times are missing, or contradict the order in which the decoder gives the frames (H.264 with
    B-frames in AVI), the decoder's order counts, at the nominal rate; such a file is always decoded from its start.

    Attributes:
        size: (height, width) in pixels of the first frame as it is shown.
    """

    def __init__(self, path: PathLike, threads: int):
        """Opens the file and decodes its first frame; see :class:`data.video_reader.VideoReader`."""
        self.path = os.fspath(path)
        self._extent: Optional[Extent] = None
        self._in_order = True
        self._times: FrozenSet[int] = frozenset()  # of all frames, where they were read; MPEG-PS guesses after a seek
        with self._explained():
            open_input(self.path).close()
            self._open()
        try:
            with self._explained():
                self._stream = self._best_stream(threads)
                self._tick = Fraction(self._stream.time_base)  # seconds of a unit of time
                head = next(self._container.demux(self._stream))
                self._start = min([0, *(time for time in (head.pts, head.dts) if time is not None)])
                first = next(chain(self._frames(head), self._decode()), None)
                if first is None:
                    raise VideoError(f"{self.path}: holds no frame")
                if first.color_trc in HDR:
                    kind = HDR[first.color_trc]
                    raise VideoError(f"{self.path}: is HDR ({kind}) and would look pale; convert it to SDR (BT.709)")
                self._origin: int = first.pts or 0
                self._interlaced = first.interlaced_frame
                self.size: Tuple[int, int] = self._image(first).shape[:2]
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def extent(self) -> Extent:
        """Frames shown and their mean rate; measured when first asked for."""
        if self._extent is None:
            with self._explained():
                self._in_order = self._is_in_order()
                self._extent = self._from_index() or self._from_packets()
            count = self._extent.num_frames
            if not 0 < count <= MAX_FRAMES_PER_BYTE * os.path.getsize(self.path):
                raise VideoError(f"{self.path}: says that it has {count} frames, more than it has room for")
        return self._extent

    def shown_at(self, times: Sequence[float]) -> Iterator[Optional[np.ndarray]]:
        """Yields the last frame at or before each of the ascending `times`, seconds after the first frame; uint8
        (h, w, 3) in RGB, or None if the video has ended by then.

        One seek to the key frame before the first time, then one pass: at most one frame is held.
        """
        interval = 1 / self.extent().fps  # first, because it says what the unit of time is
        limits = [self._origin + int(time / self._tick) for time in times]
        done = 0
        while done < len(times):
            interlaced = self._interlaced
            with self._explained():
                for shown, following in self._shown(limits[done:]):
                    if shown is not None and shown.interlaced_frame and not interlaced:
                        self._interlaced = True  # from here on: again, with the frames around it
                        break
                    if shown is None or (following is None and self._end(shown, interval) < times[done]):
                        yield None
                    elif shown.is_corrupt:
                        raise VideoError(f"{self.path}: the frame at {times[done] - interval / 2:.2f} s is damaged")
                    else:
                        yield self._image(shown)
                    done += 1

    def _open(self) -> None:
        self._container = av.open(f"file:{self.path}", options=ONLY_THIS_FILE, metadata_errors="ignore")

    def _best_stream(self, threads: int) -> av.VideoStream:
        """The best stream of moving pictures."""
        videos = [stream for stream in self._container.streams.video if not stream.disposition & NO_VIDEO]
        best = self._container.streams.best("video")
        if not videos:
            raise VideoError(f"{self.path}: holds no video")
        stream = best if best in videos else videos[0]
        if stream.codec_context is None:
            raise VideoError(f"{self.path}: holds no video of a known kind")
        stream.codec_context.thread_count = threads
        return stream

    # The order of frames and their number

    def _is_in_order(self) -> bool:
        """Whether the first frames come out of the decoder with ascending presentation times.

        The packets of a stream that reorders are in another order: this tells sound files without decoding. Only where
        they are not, or where times lack or occur twice, frames are decoded.
        """
        if not self._stream.codec_context.has_b_frames:
            return True
        self._rewind()
        times = [packet.pts for packet in islice(self._packets(), NEIGHBOURS)]
        if None not in times and len(set(times)) == len(times) and times != sorted(times):
            return True
        self._rewind()
        times = [frame.pts for frame in islice(self._decode(), NEIGHBOURS)]
        return None not in times and all(earlier < later for earlier, later in zip(times, times[1:]))

    def _from_index(self) -> Optional[Extent]:
        """What the file's index says, if that counts each frame and all of them are shown."""
        stream, index = self._stream, self._stream.index_entries
        if not (self._in_order and stream.frames == len(index) and stream.duration and stream.average_rate):
            return None
        expected = round(stream.duration * stream.time_base * stream.average_rate)
        if expected != stream.frames or index[0].is_discard:  # an edit list leaves some out
            return None
        return Extent(stream.frames, float(stream.average_rate))

    def _from_packets(self) -> Extent:
        """What all packets say; without presentation times, or with wrong ones, their order counts from now on."""
        self._rewind()
        packets = [(p.pts, p.dts, p.duration or 0) for p in self._packets()]
        self._in_order = self._in_order and any(pts is not None for pts, _, _ in packets)
        if self._in_order:  # what comes before the first frame shown lacks what it refers to, or a time
            packets = [packet for packet in packets if packet[0] is not None and packet[0] >= self._origin]
            self._times = frozenset(pts for pts, _, _ in packets)
            span = max((pts + duration for pts, _, duration in packets), default=self._origin) - self._origin
        else:
            times = [dts for _, dts, _ in packets if dts is not None]
            span = times[-1] + packets[-1][2] - times[0] if times else 0
        count, seconds = len(packets), span * self._tick
        rate = count / seconds if seconds > 0 else Fraction(0)
        for nominal in filter(None, (self._stream.guessed_rate, self._stream.average_rate)):
            missing = seconds * nominal - count  # at the end of a cut; decoding times leave out the last frame's own
            if not rate or (-0.5 if self._in_order else -1) <= missing <= min(MOST_REORDERED, count // 4):
                rate = nominal
                break
        if not self._in_order and rate:
            self._tick, self._origin = 1 / Fraction(rate), 0
        return Extent(count, float(rate))

    def _packets(self) -> Iterator[av.Packet]:
        """Packets of frames that are shown, from here on."""
        return (packet for packet in self._container.demux(self._stream) if packet.size and not packet.is_discard)

    # Decoding

    def _shown(self, limits: Sequence[int]) -> Iterator[Tuple[Optional[av.VideoFrame], Optional[av.VideoFrame]]]:
        """Yields the last frame at or before each of the ascending presentation times, and the one that follows it."""
        frames = self._decode_towards(limits)
        if self._interlaced:
            frames = _deinterlaced(frames)
        shown = next(frames, None)
        following = next(frames, None)
        for limit in limits:
            while following is not None and following.pts <= limit:
                shown, following = following, next(frames, None)
            yield shown, following

    def _decode_towards(self, limits: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Decodes from the last frame at or before the first of the ascending presentation times on, or from earlier.

        Frames of which none is the last at or before one of `limits` may be missing, unless they are interlaced; then
        a frame before the first one is there as well.
        """
        lead = int(2 / self.extent().fps / self._tick) if self._interlaced else 0
        for back in SEEK_BACK_SECONDS if self._in_order else ():
            offset = limits[0] - lead - int(back / self._tick)
            if offset <= self._origin:
                break
            self._container.seek(offset, stream=self._stream, backward=True)
            frames = self._decode_sparsely(limits)
            # What comes out before the key frame refers to frames before the place of the seek.
            first = next((frame for frame in frames if frame.key_frame), None)
            if first is not None and first.pts <= limits[0] - lead and first.pts in (self._times or (first.pts,)):
                yield first
                yield from frames
                return
        self._rewind()
        yield from self._decode_sparsely(limits)

    def _decode_sparsely(self, limits: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Decodes on from here, leaving out what is neither shown nor referred to; see `_decode_towards`."""
        codec = self._stream.codec_context
        if codec.name not in SKIPPABLE_CODECS or self._interlaced or not self._in_order:
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
        try:
            self._container.seek(self._start, stream=self._stream, backward=True)
        except PermissionError:  # a stream without any times
            threads = self._stream.codec_context.thread_count
            self.close()
            self._open()
            self._stream = self._best_stream(threads)

    def _decode(self) -> Iterator[av.VideoFrame]:
        frames = chain.from_iterable(map(self._frames, self._container.demux(self._stream)))
        for number, frame in enumerate(frames):
            if not self._in_order:  # then always from the start
                frame.pts, frame.duration = number, 1
            yield frame

    def _frames(self, packet: av.Packet) -> List[av.VideoFrame]:
        if packet.is_corrupt:
            raise VideoError(f"{self.path}: is damaged or cut off")
        if not packet.size and packet.pts is not None:  # Theora's way to show a frame again
            return []
        frames = packet.decode()
        if self._extent is not None and self._in_order and any(frame.pts is None for frame in frames):
            raise VideoError(f"{self.path}: some of its frames have no presentation times; convert it to mp4")
        return frames

    # From a frame to an image

    def _image(self, frame: av.VideoFrame) -> np.ndarray:
        """One decoded frame as uint8 (h, w, 3) in RGB, with square pixels, turned as the file says."""
        width = max(1, round(frame.width * (self._stream.sample_aspect_ratio or 1)))
        if not 1 / MAX_ASPECT <= width / frame.height <= MAX_ASPECT:
            raise VideoError(f"{self.path}: is more than {MAX_ASPECT} times as wide as high, or as high as wide")
        if frame.colorspace == UNSPECIFIED and (frame.height >= HD_HEIGHT or frame.width >= HD_WIDTH):
            frame.colorspace = BT709
        threads = self._stream.codec_context.thread_count
        image = frame.reformat(width=width, format="rgb24", threads=threads).to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return image if matrix is None else _displayed(image, bytes(matrix))

    def _end(self, frame: av.VideoFrame, interval: float) -> float:
        """When a frame is no longer shown, in seconds; `interval` is the mean time between two frames."""
        return float((frame.pts - self._origin) * self._tick) + max(float((frame.duration or 0) * self._tick), interval)

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


def _deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Frames whose two fields are of one moment, in place of those that are marked as interlaced."""
    graph = None
    for frame in chain(frames, [None]):
        if graph is None:
            if frame is None:
                return
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            graph.link_nodes(source, graph.add(*DEINTERLACER), graph.add("buffersink")).configure()
        graph.push(frame)
        while True:
            try:
                shown = graph.vpull()
            except (BlockingIOError, EOFError):
                break
            shown.pts //= 2
            yield shown


def _displayed(image: np.ndarray, matrix: bytes) -> np.ndarray:
    """Turns and mirrors an image (h, w, 3) as a display matrix says (ISO/IEC 14496-12, 8.3.2), in steps of 90 degrees.

    Args:
        matrix: nine 32-bit numbers; a pixel at (x, y) is shown at (a x + c y, b x + d y).
    """
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    if abs(b) > abs(a):  # x and y change places
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
