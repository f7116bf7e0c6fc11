"""Training clips from the videos of a CSV file, each fixed by (seed, epoch, index) alone."""

import logging
import multiprocessing
from itertools import chain
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from data.file_search import FRAMES_FPS
from data.metadata_csv import VideoRow, read_metadata
from data.motion import MAX_BUCKET
from data.transforms import CENTRE, channels_first, cover, crop, to_model_range
from data.video_reader import VideoError, VideoReader
from gm.errors import UserError
from gm.files import FilePath, PathLike

logger = logging.getLogger(__name__)

FLAG = "--train.dataset.init_args."
CLIP_STREAM = 1  # keeps these random numbers apart from others drawn from the same seed
MAX_NAMES = 20  # a longer list of videos is cut in the log
MAX_SCALE, MIN_KEPT = 2.0, 0.5  # beyond which a video is too small, or of too different a shape, to go unmentioned
WARNINGS = (
    "%s is enlarged %.1f times, from %s, and will teach blur; others may be too: choose a smaller %sheight and …width",
    "%s keeps a share of %.2f of its area, cut from %s; others may too: choose %sheight and …width of their shape",
)


RGB = [0, 1, 2]


class ClipPlan(NamedTuple):
    """Which pixels a sample consists of."""

    video: int  # index into VideoDataset.rows
    start: int  # first frame, on the video's frame grid
    position: Tuple[float, float]  # of the crop: (vertical, horizontal), 0..1
    mirrored: bool
    channels: List[int]  # in their order


class VideoDataset:
    """One clip of each video per epoch.

    A sample is a pure function of (seed, epoch, index): neither the process that reads it, nor the number of devices,
    nor what was read before changes it. A video that is broken or shorter than the CSV says is named once and another,
    drawn from the same random numbers, takes its place.

    Attributes:
        rows: the usable rows of the CSV, those that have a shot of (`frames` - 1) x `step` + 1 frames, in its order.
        columns: names of what :meth:`read` returns.
    """

    columns = ("frames", "fps", "motion_bucket_id", "video", "start")

    def __init__(
        self,
        data_dir: FilePath,
        metadata: FilePath,
        frames: int,
        step: int = 1,
        height: int = 576,
        width: int = 1024,
        random_crop: bool = False,
        horizontal_flip: bool = False,
        shuffle_channels: bool = False,
        seed: int = 42,
        max_broken_share: float = 0.1,
        fps: Optional[float] = None,
        motion_bucket_id: Optional[float] = None,
        holdout: int = 0,
        held_out: bool = False,
    ):
        """Reads and checks the CSV file; opens no video.

        Args:
            data_dir: the folder that the paths in `metadata` are relative to.
            metadata: a CSV file with the columns path, length (frames), motion_bucket_id (0..255) and, where the
                videos' own rate is missing or wrong, fps.
            frames: frames in a clip.
            step: the clip takes every step-th frame of the video.
            height: of the clips, pixels.
            width: of the clips, pixels. Videos are resized until they cover height x width, then cropped.
            random_crop: place the crop at random, not in the centre.
            horizontal_flip: mirror half of the clips, left to right.
            shuffle_channels: put the colour channels of each clip in a random order, so that all hues are equally
                common: for an autoencoder from scratch, which learns rare colours late.
            seed: of the clips' starts, crops and flips; 0 or more.
            max_broken_share: stop when more than this share of the videos is broken, 0..1. A single broken video is
                forgiven in any case, unless the share is 0 or there is no other.
            fps: frames per second that every clip is said to have, instead of its own.
            motion_bucket_id: of every clip, 0..255, instead of what the CSV file and its journal say.
            holdout: usable rows that are kept out, evenly spread; besides, in any case, those whose column `split` says
                validation.
            held_out: what was kept out is the data set.

        Raises:
            UserError: an argument out of its range, an unusable CSV row, or no video that is long enough.
        """
        _require_range(frames >= 1, "frames", frames, "1 or more")
        _require_range(step >= 1, "step", step, "1 or more")
        _require_range(height >= 1, "height", height, "1 or more")
        _require_range(width >= 1, "width", width, "1 or more")
        _require_range(seed >= 0, "seed", seed, "0 or more")
        _require_range(0.0 <= max_broken_share <= 1.0, "max_broken_share", max_broken_share, "0..1")
        _require_range(fps is None or 0 < fps <= 1000, "fps", fps, "above 0, at most 1000")
        in_range = motion_bucket_id is None or 0 <= motion_bucket_id <= MAX_BUCKET
        _require_range(in_range, "motion_bucket_id", motion_bucket_id, f"0..{MAX_BUCKET}")
        self._data_dir = Path(data_dir)
        self._frames, self._step, self._span = frames, step, (frames - 1) * step
        self._fps, self._bucket = fps, motion_bucket_id
        self._height, self._width = height, width
        self._random_crop, self._horizontal_flip = random_crop, horizontal_flip
        self._shuffle_channels = shuffle_channels
        self._seed = seed
        rows = read_metadata(data_dir, metadata, f"{FLAG}data_dir", f"{FLAG}metadata")
        self.rows: List[VideoRow] = _part(_long_enough(rows, frames, step, metadata), holdout, held_out)
        if not self.rows and not held_out:
            raise UserError(f"{FLAG}metadata: no usable row of {metadata} is left for training; keep out fewer")
        self._max_broken = _max_broken(max_broken_share, len(self.rows))
        self._broken = multiprocessing.Array("b", len(self.rows))  # shared with worker processes forked from this one
        self._warned = multiprocessing.Array("b", len(WARNINGS))

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        return len(self.rows)

    @property
    def num_broken(self) -> int:
        """Number of videos found broken so far, in this process and the worker processes forked from it."""
        return int(np.frombuffer(self._broken.get_obj(), np.int8).sum())

    def sample(self, epoch: int, index: int) -> Dict[str, np.ndarray]:
        """Sample `index` of an epoch.

        Returns:
            frames: float32 (t, 3, h, w) in -1..1, RGB.
            fps: float32, the clip's frames per second: the video's rate / step.
            motion_bucket_id: float32 in 0..255, of the clip's own frames where that is known, else of the video.
            video, start: int32; the clip's identity: its index in `rows` and its first frame.

        Raises:
            UserError: too many videos are broken.
        """
        return {name: values[0] for name, values in self.collate([self.read(epoch, index)]).items()}

    def read(self, epoch: int, index: int) -> Tuple[np.ndarray, ...]:
        """As :meth:`sample`, in the order of `columns`, but with frames as uint8 (t, 3, h, w): cheap to pass on."""
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(CLIP_STREAM, epoch, index)))
        plan = self._plan(index, rng)
        while True:
            try:
                frames, fps = self._load(plan)
                break
            except VideoError as error:
                self._set_aside(plan.video, error)
                plan = self._plan(int(rng.integers(len(self))), rng)
        return (
            frames,
            np.float32(self._fps or fps / self._step),
            np.float32(self.bucket(plan.video, plan.start)),
            np.int32(plan.video),
            np.int32(plan.start),
        )

    def bucket(self, video: int, start: int) -> float:
        """The motion bucket of the clip of a video, by its index in `rows`, that starts at a frame."""
        return self.rows[video].bucket(start, self._span) if self._bucket is None else self._bucket

    def collate(self, rows: Sequence[Tuple[np.ndarray, ...]]) -> Dict[str, np.ndarray]:
        """What :meth:`read` returned for several samples, as one batch: each value of `sample` with a batch axis."""
        columns = zip(*rows)
        frames = to_model_range(next(columns))
        return {"frames": frames, **{name: np.array(column) for name, column in zip(self.columns[1:], columns)}}

    def _plan(self, video: int, rng: np.random.Generator) -> ClipPlan:
        """Draws the same number of random values whatever the options, so that one does not change the others."""
        starts = list(chain.from_iterable(self.rows[video].starts(self._span)))
        start = starts[int(rng.integers(len(starts)))]
        vertical, horizontal, mirror = rng.random(3)
        position = (vertical, horizontal) if self._random_crop else CENTRE
        order = rng.permutation(len(RGB)).tolist()
        mirrored = self._horizontal_flip and mirror < 0.5
        return ClipPlan(video, start, position, mirrored, order if self._shuffle_channels else RGB)

    def _load(self, plan: ClipPlan) -> Tuple[np.ndarray, float]:
        """(frames as uint8 (t, 3, h, w), the video's frames per second)."""
        row = self.rows[plan.video]
        with VideoReader(self._data_dir / row.path, fps=row.fps or FRAMES_FPS) as reader:
            frames = reader.read_clip(plan.start, self._frames, self._step)
            fps = row.fps or reader.fps
        self._warn_of_loss(plan.video, *frames.shape[1:3])
        frames = crop(cover(frames, self._height, self._width), self._height, self._width, plan.position)
        if plan.mirrored:
            frames = frames[:, :, ::-1]
        if plan.channels != RGB:
            frames = frames[..., plan.channels]
        return channels_first(frames), fps

    def _warn_of_loss(self, video: int, height: int, width: int) -> None:
        """Names the first video of this size that is enlarged much, and the first that is cropped much."""
        scale = max(self._height / height, self._width / width)
        kept = (self._height * self._width) / (scale**2 * height * width)
        for index, (holds, value) in enumerate(((scale > MAX_SCALE, scale), (kept < MIN_KEPT, kept))):
            with self._warned.get_lock():
                new, self._warned[index] = holds and not self._warned[index], self._warned[index] or holds
            if new:
                size = f"{width}x{height} for {self._width}x{self._height}"
                logger.warning(WARNINGS[index], self.rows[video].path, value, size, FLAG)

    def _set_aside(self, video: int, error: VideoError) -> None:
        """Counts a broken video and names it the first time.

        It is still tried when drawn again: a damaged file may hold sound clips, and a sample must not depend on which
        others were read before it.
        """
        with self._broken.get_lock():
            known, self._broken[video] = self._broken[video], 1
            count = self.num_broken
        if not known:
            logger.warning("skipped a broken video, %d of %d so far: %s", count, len(self), error)
        if count > self._max_broken:
            raise UserError(
                f"{count} of {len(self)} videos are broken, the last one being {error}; "
                f"repair them or raise {FLAG}max_broken_share"
            )


def _long_enough(rows: List[VideoRow], frames: int, step: int, metadata: PathLike) -> List[VideoRow]:
    """The rows with a shot of (frames - 1) x step + 1 frames; names the others in the log."""
    needed = (frames - 1) * step + 1
    usable = [row for row in rows if row.starts(needed - 1)]
    if not usable:
        raise UserError(
            f"{FLAG}frames: no usable row in {metadata}: (frames - 1) x step + 1 = ({frames} - 1) x {step} + 1 = "
            f"{needed}, and the longest of its {len(rows)} videos has {max(row.length for row in rows)} frames, cuts "
            "aside; lower frames or step"
        )
    short = [row.path for row in rows if not row.starts(needed - 1)]
    if short:
        names = ", ".join(short[:MAX_NAMES]) + (f" and {len(short) - MAX_NAMES} more" if len(short) > MAX_NAMES else "")
        logger.warning(
            "left out %d of %d videos without a shot of (frames - 1) x step + 1 = %d frames: %s",
            len(short), len(rows), needed, names,
        )  # fmt: skip
    return usable


def _part(rows: List[VideoRow], holdout: int, held_out: bool) -> List[VideoRow]:
    """The rows that are kept out for validation, or the others."""
    free = [index for index, row in enumerate(rows) if row.split is None]
    spread = np.linspace(0, len(free), min(holdout, len(free)), endpoint=False)
    out = {free[int(place)] for place in spread}
    return [row for index, row in enumerate(rows) if (row.split == "validation" or index in out) == held_out]


def _max_broken(share: float, num_videos: int) -> int:
    if share == 0.0:
        return 0
    return min(max(1, int(share * num_videos)), num_videos - 1)


def _require_range(holds: bool, name: str, value: float, meaning: str) -> None:
    if not holds:
        raise UserError(f"{FLAG}{name} is {value}; it is {meaning}")
