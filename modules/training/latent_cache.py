"""Training clips encoded once to disk, so that neither CLIP nor the autoencoder is in memory while the UNet trains.

What is kept of each clip: the autoencoder's latents of its clean frames, CLIP's token of its first frame, and the
latents of its first frame with conditioning noise. Three things that training draws anew each time cannot all be kept:

* Where the clip starts (and its crop and mirroring). `windows` clips of each video are kept: those that a run without a
  cache sees in its first `windows` epochs. Epoch e trains on window e mod `windows`.
* The conditioning noise: ln cond_aug ~ N(mean, std²), noise ~ N(0, 1), latent = encode(frame + cond_aug · noise). The
  encoder does not commute with the noise, so whole latents are kept: `draws` of them for each clip, drawn
  independently, each with its cond_aug. Every one is a true sample; only their number is limited. Epoch e takes draw
  (e // windows) mod `draws`, so that nothing repeats for `windows` x `draws` epochs.
* The autoencoder's posterior: its mode is kept, which training without a cache uses as well.

A file's name is a hash of all that its content depends on: the video's path, size and time of change, the window, the
data set's options, the number of draws and their distribution, and the encoders' weights and configuration. Whatever
changes gives another name: a stale file is never read, and the next build makes what is missing.
"""

import inspect
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from data.file_search import stamp
from data.metadata_csv import VideoRow
from data.video_dataset import VideoDataset
from gm.backend.operators import inference
from gm.errors import UserError
from gm.files import PathLike, atomic_file, make_output_dir, own_folder, parse_json, require_free_space
from gm.model import DiffusionEngine
from gm.networks.conditioner import GeneralConditioner
from gm.training.objective import SampleRandom
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from modules.conditioning import CLEAN_FRAME, NOISED_FRAME, conditioning_inputs, encode_frames
from modules.training.fingerprint import NOT_OF_CONTENT, digest, encoder_fingerprint

FLAG = "--train.latent_cache."
FORMAT = 2  # raised when the content of the files changes its meaning
COND_STREAM = 2  # keeps these random numbers apart from others drawn from the same seed
KEY_DIGITS = 32
# Where starting the operators takes as long as running them, encoding is compiled: pixels of a frame, clips to encode.
COMPILED_PIXELS, COMPILED_CLIPS = 256 * 256, 100
SUFFIX, BROKEN_SUFFIX = ".safetensors", ".broken"
MAX_NAMES, MAX_CLIPS = 10, 1_000_000
Shapes = Dict[str, Tuple[int, ...]]

logger = logging.getLogger(__name__)


class CachedDataset:
    """One encoded clip of each video per epoch, in the place of :class:`data.video_dataset.VideoDataset`.

    Args:
        rows: of the CSV file, one for each video; those that are broken are left out.
        paths: for each video the files of its windows, at least one.
        draws: of conditioning noise in each file.
        bucket: (index of a row, first frame) -> the motion bucket of the clip there.
        shapes: of the tensors that each file has to hold.

    Attributes:
        columns: names of what :meth:`read` returns.
    """

    columns = (
        "latents", "clip_token", "cond_latent", "cond_aug", "fps_id", "motion_bucket_id", "video", "start",
    )  # fmt: skip
    num_broken = 0  # what is broken was left out when the cache was built

    def __init__(
        self,
        rows: List[VideoRow],
        paths: Sequence[List[Path]],
        draws: int,
        bucket: Callable[[int, int], float],
        shapes: Shapes,
    ) -> None:
        self.rows, self.bucket = rows, bucket
        self._paths, self._draws, self._shapes = paths, draws, shapes

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        return len(self.rows)

    def sample(self, epoch: int, index: int) -> Dict[str, np.ndarray]:
        """Sample `index` of an epoch: a pure function of both.

        Returns:
            latents: float32 (t, 4, h, w), multiplied by the scale factor.
            clip_token: float32 (1, c).
            cond_latent: float32 (4, h, w), of the noised first frame, not multiplied by the scale factor.
            cond_aug: float32, the standard deviation of that noise.
            fps_id: float32, what the model is conditioned on.
            motion_bucket_id, video, start: as in a VideoDataset; the motion bucket is the CSV's of today.

        Raises:
            UserError: the file is gone or damaged.
        """
        return dict(zip(self.columns, self.read(epoch, index)))

    def read(self, epoch: int, index: int) -> Tuple[np.ndarray, ...]:
        """As :meth:`sample`, in the order of `columns`."""
        rounds, window = divmod(epoch, len(self._paths[index]))
        draw = rounds % self._draws
        with open_checkpoint(self._paths[index][window]) as source:
            if {name: info.shape for name, info in source.info.items()} != self._shapes:
                raise UserError(f"{FLAG}folder: {source.path} holds other tensors than a clip's; remove it")
            start = int(source.read("start"))
            return (
                np.array(source.read("latents")),
                np.array(source.read("clip_token")),
                np.array(source.read("cond_latents")[draw]),
                np.float32(source.read("cond_augs")[draw]),
                np.float32(source.read("fps_id")),
                np.float32(self.bucket(index, start)),
                np.int32(index),
                np.int32(start),
            )

    def collate(self, rows: Sequence[Tuple[np.ndarray, ...]]) -> Dict[str, np.ndarray]:
        """What :meth:`read` returned for several samples, as one batch: each value of `sample` with a batch axis."""
        return {name: np.stack(column) for name, column in zip(self.columns, zip(*rows))}


class Clip(NamedTuple):
    """One clip to be kept."""

    video: int  # index into the data set's rows
    window: int  # the epoch whose sample it is
    fingerprint: Dict[str, Any]  # all that its content depends on
    path: Path  # its file
    broken_mark: Path  # the file that says that the video cannot be read there


class LatentCache:
    """The encoded clips of a data set in a folder.

    Args:
        folder: where the files are; made if it does not exist. Several data sets may share it.
        dataset_args: the arguments of :class:`data.video_dataset.VideoDataset`.
        engine: attached to the checkpoint whose encoders are used.
        cond_aug: mean and standard deviation of ln cond_aug.
        windows: clips of each video, 1 or more.
        draws: of conditioning noise for each clip, 1 or more.

    Raises:
        UserError: unusable arguments.
    """

    def __init__(
        self,
        folder: PathLike,
        dataset_args: Mapping[str, Any],
        engine: DiffusionEngine,
        cond_aug: Tuple[float, float],
        windows: int = 1,
        draws: int = 8,
    ) -> None:
        self.folder = make_output_dir(folder, f"{FLAG}folder")
        self.dataset = VideoDataset(**dataset_args)
        self.engine, self.cond_aug, self.draws = engine, tuple(cond_aug), draws
        options = inspect.signature(VideoDataset).bind(**dataset_args)
        options.apply_defaults()
        self.seed: int = options.arguments["seed"]
        self.settings = {
            "format": FORMAT,
            **{k: v for k, v in options.arguments.items() if k not in NOT_OF_CONTENT and v is not None},
            "cond_aug": list(self.cond_aug),
            "draws": draws,
            "scale_factor": engine.scale_factor,
            "encoders": encoder_fingerprint(engine.conditioner),
        }
        self.clips = self._clips(Path(dataset_args["data_dir"]), windows)

    def build(self, chunk_size: int = 1, rank: int = 0, world_size: int = 1) -> None:
        """Encodes the clips that are missing; one that was killed goes on where it was.

        Needs the conditioner's weights; they are released at the end.

        Args:
            chunk_size: images that the autoencoder encodes together.
            rank, world_size: this process makes every world_size-th clip; all have to be done before `open`.

        Raises:
            UserError: too many broken videos, or no room on the disk.
        """
        share = self.clips[rank::world_size]
        missing = [clip for clip in share if not clip.path.exists()]
        logger.info("latent cache %s: %d of %d clips are to be encoded", self.folder, len(missing), len(share))
        if not missing:
            return
        small = self.settings["height"] * self.settings["width"] <= COMPILED_PIXELS
        compiled = small and len(missing) >= COMPILED_CLIPS  # if that is the program's mode
        try:
            with self.engine.conditioner as conditioner, inference(None if compiled else False):
                for clip, row in self._rows(missing):
                    self._write(conditioner, clip, row, chunk_size)
                    if clip is missing[0] and clip.path.exists():
                        count = len(missing) - 1
                        more = f"{count} more clips of the latent cache"
                        require_free_space(self.folder, count * clip.path.stat().st_size, more)
        finally:
            self.engine.conditioner.release()

    def open(self) -> CachedDataset:
        """The clips as a data set.

        Raises:
            UserError: clips are missing (the message says what changed since they were made), or all are broken.
        """
        missing = [clip for clip in self.clips if not clip.path.exists() and not clip.broken_mark.exists()]
        if missing:
            video = self.dataset.rows[missing[0].video].path
            raise UserError(
                f"{FLAG}folder: {self.folder} lacks {len(missing)} of {len(self.clips)} clips, the first of {video}"
                f"{self._changes(missing[0])}; build the cache again, which makes only these"
            )
        paths: Dict[int, List[Path]] = {}
        for clip in self.clips:
            if clip.path.exists():
                paths.setdefault(clip.video, []).append(clip.path)
        rows = self.dataset.rows
        left_out = [row.path for index, row in enumerate(rows) if index not in paths]
        if left_out:
            more = ", …" if len(left_out) > MAX_NAMES else ""
            logger.warning("left out %d broken videos: %s%s", len(left_out), ", ".join(left_out[:MAX_NAMES]), more)
        if not paths:
            raise UserError(f"{FLAG}folder: {self.folder} holds no clip: all videos are broken; repair them")
        known = list(paths)
        return CachedDataset(
            [rows[index] for index in known],
            list(paths.values()),
            self.draws,
            lambda index, start: self.dataset.bucket(known[index], start),
            self._shapes(),
        )

    def _shapes(self) -> Shapes:
        latent = self.engine.latent_shape(self.settings["height"], self.settings["width"])
        clip = next(shape for name, shape in self.engine.conditioner.shapes().items() if name.endswith(".visual.proj"))
        return {
            "latents": (self.settings["frames"], *latent),
            "clip_token": (1, clip[1]),
            "cond_latents": (self.draws, *latent),
            "cond_augs": (self.draws,),
            "fps_id": (),
            "start": (),
        }

    def _clips(self, data_dir: Path, windows: int) -> List[Clip]:
        if windows * len(self.dataset) > MAX_CLIPS:
            raise UserError(f"{FLAG}windows: {windows} of {len(self.dataset)} videos are more than {MAX_CLIPS} clips")
        clips = []
        for index, row in enumerate(self.dataset.rows):
            size, changed_ns = stamp(data_dir / row.path)
            video = {"video": row.path, "bytes": size, "changed_ns": changed_ns, "length": row.length, "fps": row.fps}
            if row.motion is not None:
                video["shots"] = [list(shot) for shot in row.motion.shots()]
            for window in range(windows):
                fingerprint = {**self.settings, **video, "index": index, "window": window}
                key = digest(fingerprint)[:KEY_DIGITS]
                path = self.folder / key[:2] / (key + SUFFIX)
                clips.append(Clip(index, window, fingerprint, path, path.with_suffix(BROKEN_SUFFIX)))
        return clips

    def _rows(self, clips: Sequence[Clip]) -> Iterator[Tuple[Clip, Tuple[np.ndarray, ...]]]:
        """Each clip with what the data set read for it; the next one is decoded while the last one is encoded."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(self.dataset.read, clips[0].window, clips[0].video)
            for clip, following in zip(tqdm(clips, "encoding clips", unit="clip", disable=None), [*clips[1:], None]):
                row = ahead.result()
                if following is not None:
                    ahead = reader.submit(self.dataset.read, following.window, following.video)
                yield clip, row

    def _write(self, conditioner: GeneralConditioner, clip: Clip, row: Tuple[np.ndarray, ...], chunk_size: int) -> None:
        sample = {name: values[0] for name, values in self.dataset.collate([row]).items()}
        own_folder(clip.path.parent)
        if sample["video"] != clip.video:  # the video is broken there and another one stands in: it has its own clips
            with atomic_file(clip.broken_mark) as temporary:
                temporary.write_text(json.dumps(clip.fingerprint))
            return
        frames = sample["frames"]
        inputs = self._noised(frames[0], clip, sample["fps"], sample["motion_bucket_id"])
        latents = encode_frames(conditioner, np.concatenate([frames, inputs[NOISED_FRAME]]), chunk_size)
        tensors = {
            "latents": latents[: len(frames)] * np.float32(self.engine.scale_factor),
            "clip_token": conditioner.embed({CLEAN_FRAME: frames[:1]})["crossattn"][0],
            "cond_latents": latents[len(frames) :],
            "cond_augs": inputs["cond_aug"],
            "fps_id": inputs["fps_id"][0],
            "start": sample["start"],
        }
        arrays = {name: np.asarray(value) for name, value in tensors.items()}
        save_safetensors(clip.path, arrays, {"identity": json.dumps(clip.fingerprint)})
        clip.broken_mark.unlink(missing_ok=True)

    def _noised(self, frame: np.ndarray, clip: Clip, fps: float, motion_bucket_id: float) -> Dict[str, np.ndarray]:
        """The conditioner's inputs for each draw of conditioning noise for a clip, from its first frame (3, h, w)."""
        rng = SampleRandom(self.seed, clip.window, clip.video).stream(COND_STREAM)
        cond_augs = rng.lognormal(*self.cond_aug, self.draws).astype(np.float32)
        noise = rng.standard_normal((self.draws, *frame.shape), np.float32)
        return conditioning_inputs(np.broadcast_to(frame, noise.shape), noise, fps, motion_bucket_id, cond_augs)

    def _changes(self, clip: Clip) -> str:
        """What distinguishes a missing clip from one that is there, in words; "" where there is none."""
        of_these = (other.path for other in self.clips if other.path.exists())
        there = next(of_these, None) or next(self.folder.glob(f"*/*{SUFFIX}"), None)
        if there is None:
            return ""
        with open_checkpoint(there) as source:
            try:
                other = dict(parse_json(source.metadata.get("identity", "{}")))
            except (ValueError, TypeError):
                other = {}
        names = ", ".join(name for name in self.settings if other.get(name) != self.settings[name])
        changed = f"{clip.fingerprint['video']} is new or changed, or the rows of the CSV moved"
        return f"; the clips there were made with other {names}" if names else f"; {changed}"
