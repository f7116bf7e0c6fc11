"""Validation: the same clips, images, noise and seeds every time, so that a change is the model's."""

import logging
import tempfile
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import mindspore as ms
import numpy as np

from data.file_search import find_images
from data.image_reader import fit_image, read_image
from data.video_dataset import VideoDataset
from data.video_metrics import psnr
from data.video_writer import GIF_MAX_FPS, write_gif, write_video
from gm.backend.operators import inference
from gm.files import PathLike, own_folder
from gm.model import DiffusionEngine
from gm.networks.conditioner import Conditioning
from gm.training.callbacks import Callback, TensorBoardLog, WandbLog, keep_training
from gm.training.objective import NOISE, SampleRandom, unit_gaussian
from gm.training.trainer import Batch, Trainer
from modules.compatibility import Sgm, to_pixels
from modules.options import ClipOptions
from modules.pipeline import generate
from modules.training.inputs import FRAMES, UNetInputs
from modules.training.options import ValidationOptions

MAX_PSNR = 100.0  # dB, what equal videos have
FOLDER = "validation"  # in the run's folder
FLAG = "--train.validation."
SIGMAS = (0.3, 1.0, 3.0, 10.0)  # about the quantiles 12, 27, 52 and 80 % of SVD's distribution of σ
VALIDATION_EPOCH = 1 << 31  # no training clip's random numbers are of this epoch

logger = logging.getLogger(__name__)


class ValidationVideos(Callback):
    """Samples videos with the averaged weights, as mp4 files and into TensorBoard.

    Each is the video that `image_to_video.py` would give for the same settings and the weights of that step.

    A video that cannot be made for want of memory or room is named in a warning, and the next validation tries again;
    training goes on (:func:`gm.training.callbacks.keep_training`). An error in the program ends the run, after its
    checkpoint.

    Args:
        images: an image file or a folder of them.
        num_frames, height, width: of the videos; the training's by default, which the caller knows.
        log: TensorBoard's files.
        wandb: Weights & Biases.
        options: other fields of :class:`modules.training.options.ValidationOptions`.

    Raises:
        UserError: an image cannot be read: before training starts.
    """

    def __init__(
        self,
        images: PathLike,
        num_frames: int,
        height: int,
        width: int,
        log: Optional[TensorBoardLog] = None,
        wandb: Optional[WandbLog] = None,
        **options: Any,
    ) -> None:
        self._paths: List[Path] = find_images(images, f"{FLAG}images")
        self._images = [fit_image(read_image(path), height, width) for path in self._paths]
        self._options = ValidationOptions(**{"every": 1, "images": str(images), **options})
        self._num_frames, self._shown = num_frames, Shown(log, wandb)

    def on_validation(self, step: int, trainer: Trainer) -> None:
        """Makes all videos with the weights of this step."""
        with trainer.averaged(), _sampling_steps(trainer.engine, self._options.sampling_steps):
            for path, image in zip(self._paths, self._images):
                for seed in self._options.seeds:
                    name = f"{path.stem}_seed{seed}"
                    with keep_training(f"the validation video {name} of step {step}"):
                        frames = sample(trainer.engine, to_pixels(image), self._num_frames, seed, self._options)
                        self._shown(frames, name, step, self._options, Path(trainer.output_dir) / FOLDER)


class ValidationClips(Callback):
    """Measures and shows how well the averaged weights know clips that the run is judged by.

    The figures are, as means over the clips, `validation/loss` (the mean over :data:`SIGMAS`, and for each of them
    `validation/loss_sigma_S`), whose noise is always the same, and `validation/psnr`, in dB, of videos that are sampled
    from the first frames, beside `validation/psnr_still`, of the first frame as a still video. Each clip is written
    with its sample at its right, as :class:`ValidationVideos` writes its videos.

    Args:
        dataset: the videos; a clip of each, always the same.
        options: of the validation.
        seed: of the clips' noise.
        log, wandb: see :class:`ValidationVideos`.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        options: ValidationOptions,
        seed: int,
        log: Optional[TensorBoardLog] = None,
        wandb: Optional[WandbLog] = None,
    ) -> None:
        self._dataset, self._options, self._seed, self._shown = dataset, options, seed, Shown(log, wandb)
        count = min(options.clips, len(dataset))
        self._indices = [int(index) for index in np.linspace(0, len(dataset), count, endpoint=False)]
        self._encoded: Dict[int, Tuple[np.ndarray, Conditioning]] = {}

    def on_validation(self, step: int, trainer: Trainer) -> None:
        """Measures with the weights of this step, and makes all videos."""
        figures: Dict[str, List[float]] = {}
        with trainer.averaged(), _sampling_steps(trainer.engine, self._options.sampling_steps):
            for index in self._indices:
                name = f"clip_{index:04d}"
                with keep_training(f"the validation on {name} of step {step}"):
                    batch = self._dataset.collate([self._dataset.read(0, index)])
                    found = {**self._losses(trainer, index, batch), **self._psnr(trainer, name, batch)}
                    for key, value in found.items():
                        figures.setdefault(f"{FOLDER}/{key}", []).append(value)
        if figures:
            trainer.report({name: float(np.mean(values)) for name, values in figures.items()})

    def _losses(self, trainer: Trainer, index: int, batch: Batch) -> Dict[str, float]:
        randoms = [SampleRandom(self._seed, VALIDATION_EPOCH, index)]
        inputs: UNetInputs = trainer.prepare
        if index not in self._encoded:
            with trainer.engine.conditioner:
                self._encoded[index] = inputs.encoders(batch, randoms)
        latents, cond = self._encoded[index]
        noise = unit_gaussian(randoms, NOISE, latents.shape[1:])
        losses = {}
        with trainer.engine.network as network, inference(None, True, network, **trainer.engine.backend):
            for sigma in SIGMAS:
                one = inputs.objective.inputs(latents, cond, np.array([sigma]), noise)
                predicted = network(*one.tensors()[:4]).astype(ms.float32).asnumpy()
                losses[f"loss_sigma_{sigma:g}"] = float(np.mean((predicted - one.target) ** 2) * one.weight[0])
        return {"loss": float(np.mean(list(losses.values()))), **losses}

    def _psnr(self, trainer: Trainer, name: str, batch: Batch) -> Dict[str, float]:
        fps, bucket = round(float(batch["fps"][0])), round(float(batch["motion_bucket_id"][0]))
        options = replace(self._options, fps=max(1, fps), motion_bucket_id=bucket)
        clip = Sgm.to_frames(batch[FRAMES])[0]
        frames = sample(trainer.engine, batch[FRAMES][:, 0], len(clip), self._options.seeds[0], options)
        beside = np.concatenate([clip, frames], axis=2)  # t h w c
        self._shown(beside, name, trainer.step, options, Path(trainer.output_dir) / FOLDER)
        still = np.broadcast_to(clip[:1], clip.shape)
        pairs = {"psnr": (frames, clip), "psnr_still": (still, clip)}
        return {name: min(psnr(*pair), MAX_PSNR) for name, pair in pairs.items()}


class Shown(NamedTuple):
    """Where validation videos go to, beside their files."""

    log: Optional[TensorBoardLog]
    wandb: Optional[WandbLog]

    def __call__(self, frames: np.ndarray, name: str, step: int, options: ClipOptions, folder: Path) -> None:
        """Writes a video, (t, h, w, 3) uint8, as `name_stepN.mp4` in a folder, and shows it."""
        own_folder(folder)
        path = folder / f"{name}_step{step:08d}.mp4"
        settings = {"step": step, "motion_bucket_id": options.motion_bucket_id, "fps": options.fps}
        write_video(frames, path, options.fps, settings, "mp4")
        if self.log is not None:
            with tempfile.TemporaryDirectory() as temporary:
                animation = Path(temporary) / "video.gif"
                write_gif(frames, animation, min(options.fps, GIF_MAX_FPS), name)
                self.log.animation(step, f"{FOLDER}/{name}", animation.read_bytes(), *frames.shape[1:3])
        if self.wandb is not None:
            self.wandb.video(step, f"{FOLDER}/{name}", path)


def sample(engine: DiffusionEngine, pixels: np.ndarray, num_frames: int, seed: int, options: ClipOptions) -> np.ndarray:
    """Animates a first frame, (1, 3, h, w) in -1..1: (t, h, w, 3), uint8."""
    rng = np.random.default_rng(seed)
    noises = Sgm.draw(rng, pixels.shape, (1, *engine.clip_shape(num_frames, *pixels.shape[2:])))
    return Sgm.to_frames(generate(engine, pixels, noises, rng, options))[0]


@contextmanager
def _sampling_steps(engine: DiffusionEngine, steps: int) -> Iterator[None]:
    """The engine's sampler with another number of steps inside the block; 0 leaves it."""
    before = engine.sampler
    if steps:
        engine.sampler = copy(before)
        engine.sampler.num_steps = steps
    try:
        yield
    finally:
        engine.sampler = before
