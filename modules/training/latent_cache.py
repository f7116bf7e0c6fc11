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

import hashlib
import inspect
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ContextManager, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from data.video_dataset import VideoDataset
from gm.backend.operators import inference
from gm.errors import UserError
from gm.files import PathLike, atomic_file, make_output_dir, require_free_space
from gm.model import DiffusionEngine, Stage
from gm.networks.conditioner import GeneralConditioner
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from modules.training.cached_dataset import CachedDataset

FLAG = "--train.latent_cache."
FORMAT = 1  # raised when the content of the files changes its meaning
COND_STREAM = 2  # keeps these random numbers apart from others drawn from the same seed
FRAMES_KEY, CLEAN_KEY = "cond_frames", "cond_frames_without_noise"  # inputs of the two embedders that are run
NOT_OF_CONTENT = ("data_dir", "metadata", "max_broken_share")  # options that do not change what a clip looks like
KEY_DIGITS = 32
COMPILED_PIXELS, COMPILED_CLIPS = 256 * 256, 100  # of a frame at most; to be encoded at least
SUFFIX, BROKEN_SUFFIX = ".safetensors", ".broken"
MAX_NAMES = 10

logger = logging.getLogger(__name__)


class Clip(NamedTuple):
    """One clip to be kept."""

    video: int  # index into the data set's rows
    window: int  # the epoch whose sample it is
    identity: Dict[str, Any]  # all that its content depends on
    path: Path  # its file

    @property
    def broken_mark(self) -> Path:
        """The file that says that the video cannot be read there."""
        return self.path.with_suffix(BROKEN_SUFFIX)


class LatentCache:
    """The encoded clips of a data set in a folder.

    Args:
        folder: where the files are; made if it does not exist. Several data sets may share it.
        dataset_args: the arguments of :class:`data.video_dataset.VideoDataset`.
        engine: attached to the checkpoint whose encoders are used.
        cond_aug: mean and standard deviation of ln cond_aug.
        windows: clips of each video.
        draws: of conditioning noise for each clip.

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
        for name, value in (("windows", windows), ("draws", draws)):
            if value < 1:
                raise UserError(f"{FLAG}{name} is {value}; it is 1 or more")
        self.folder = make_output_dir(folder, f"{FLAG}folder")
        self.dataset = VideoDataset(**dataset_args)
        self.engine, self.cond_aug, self.draws = engine, tuple(cond_aug), draws
        options = inspect.signature(VideoDataset).bind(**dataset_args)
        options.apply_defaults()
        self.seed: int = options.arguments["seed"]
        self.settings = {
            "format": FORMAT,
            **{name: value for name, value in options.arguments.items() if name not in NOT_OF_CONTENT},
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
            chunk_size: pictures that the autoencoder encodes together.
            rank, world_size: this process makes every world_size-th clip; all have to be done before `open`.

        Raises:
            UserError: too many broken videos, or no room on the disk.
        """
        share = self.clips[rank::world_size]
        missing = [clip for clip in share if not clip.path.exists()]
        logger.info("latent cache %s: %d of %d clips are to be encoded", self.folder, len(missing), len(share))
        if not missing:
            return
        try:
            with self.engine.conditioner as conditioner, self._mode(len(missing)):
                for number, (clip, row) in enumerate(self._rows(missing)):
                    self._write(conditioner, clip, row, chunk_size)
                    if number == 0:
                        self._require_room(clip, len(missing) - 1)
        finally:
            self.engine.conditioner.release()

    def _mode(self, num_clips: int) -> ContextManager[None]:
        """Compiled, if that is the program's mode, where starting the operators takes as long as running them."""
        small = self.settings["height"] * self.settings["width"] <= COMPILED_PIXELS
        return nullcontext() if small and num_clips >= COMPILED_CLIPS else inference()

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
        return CachedDataset([rows[index] for index in paths], list(paths.values()), self.draws)

    def _clips(self, data_dir: Path, windows: int) -> List[Clip]:
        clips = []
        for index, row in enumerate(self.dataset.rows):
            file = os.stat(data_dir / row.path)
            video = {"video": row.path, "bytes": file.st_size, "changed_ns": file.st_mtime_ns, "length": row.length}
            for window in range(windows):
                identity = {**self.settings, **video, "index": index, "window": window}
                key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]
                clips.append(Clip(index, window, identity, self.folder / key[:2] / (key + SUFFIX)))
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
        clip.path.parent.mkdir(exist_ok=True)
        if sample["video"] != clip.video:  # the video is broken there and another one stands in: it has its own clips
            with atomic_file(clip.broken_mark) as temporary:
                temporary.write_text(json.dumps(clip.identity))
            return
        frames = sample["frames"]
        cond_augs, noised = self._noised(frames[0], clip)
        latents, cond_latents = np.split(
            _encode(conditioner, np.concatenate([frames, noised]), chunk_size), [len(frames)]
        )
        tensors = {
            "latents": latents * np.float32(self.engine.scale_factor),
            "clip_token": _embed(conditioner, CLEAN_KEY, frames[:1])["crossattn"][0],
            "cond_latents": cond_latents,
            "cond_augs": cond_augs,
            "fps_id": sample["fps_id"],
            "start": sample["start"],
        }
        tensors = {name: np.asarray(value) for name, value in tensors.items()}
        save_safetensors(clip.path, tensors, {"identity": json.dumps(clip.identity)})
        clip.broken_mark.unlink(missing_ok=True)

    def _noised(self, frame: np.ndarray, clip: Clip) -> Tuple[np.ndarray, np.ndarray]:
        """The draws for a clip: cond_aug (n,), and the frame (3, h, w) with noise, (n, 3, h, w)."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(COND_STREAM, clip.window, clip.video))
        rng = np.random.default_rng(sequence)
        cond_augs = rng.lognormal(*self.cond_aug, self.draws).astype(np.float32)
        noise = rng.standard_normal((self.draws, *frame.shape), np.float32)
        return cond_augs, frame + cond_augs[:, None, None, None] * noise

    def _require_room(self, clip: Clip, count: int) -> None:
        if clip.path.exists():
            require_free_space(self.folder, count * clip.path.stat().st_size, f"{count} more clips of the latent cache")

    def _changes(self, clip: Clip) -> str:
        """What distinguishes a missing clip from one that is there, in words; "" where there is none."""
        of_these = (other.path for other in self.clips if other.path.exists())
        there = next(of_these, None) or next(self.folder.glob(f"*/*{SUFFIX}"), None)
        if there is None:
            return ""
        with open_checkpoint(there) as source:
            other = json.loads(source.metadata.get("identity", "{}"))
        names = [name for name in self.settings if other.get(name) != self.settings[name]]
        if names:
            return f"; the clips there were made with other {', '.join(names)}"
        return f"; {clip.identity['video']} is new or changed, or the rows of the CSV moved"


def encoder_fingerprint(stage: Stage) -> str:
    """The SHA-256 of the conditioner's configuration and of the weights that it uses, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(stage.build.node, sort_keys=True).encode())
    with open_checkpoint(stage.path) as source:
        for name in stage.shapes():
            if stage.needed is None or stage.needed(name[len(stage.prefix) :]):
                info = source.info[name]
                digest.update(f"{name} {info.dtype} {info.shape}".encode())
                digest.update(source.read_raw(name))
                source.release(name)
    return digest.hexdigest()


def _encode(conditioner: GeneralConditioner, pictures: np.ndarray, chunk_size: int) -> np.ndarray:
    """(n, 3, H, W), range -1..1 -> the mode of their latents (n, 4, H/8, W/8), not multiplied by the scale factor."""
    chunks = [pictures[start : start + chunk_size] for start in range(0, len(pictures), chunk_size)]
    return np.concatenate([_embed(conditioner, FRAMES_KEY, chunk)["concat"] for chunk in chunks])


def _embed(conditioner: GeneralConditioner, key: str, pictures: np.ndarray) -> Dict[str, np.ndarray]:
    return conditioner.embed({key: pictures}, skip=[other for other in conditioner.input_keys if other != key])
