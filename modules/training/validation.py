"""Validation videos: the same images and seeds every time, so that a change is the model's."""

import logging
import tempfile
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

import numpy as np

from data.image_reader import find_images, fit_image, read_image
from data.video_writer import write_gif, write_video
from gm.files import PathLike
from gm.model import DiffusionEngine
from gm.training.callbacks import keep_training
from gm.training.callbacks_base import Callback, TrainerView
from gm.training.metrics_log import MetricsLog
from modules.generation import ClipSettings, draw_noise, generate, to_frames, to_pixels

FOLDER = "validation"  # in the run's folder
FLAG = "--train.validation."

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
        seeds: of the noise; each image is animated with each.
        fps: frames per second of the video, which the model is conditioned on (less 1).
        motion_bucket_id: 0 to 255.
        noise_aug_strength: of the conditioning noise.
        sampling_steps: of the sampler; 0 takes the YAML's.
        decode_chunk_size: frames decoded at a time; 0 decodes all at once.
        log: TensorBoard's files.

    Raises:
        UserError: an image cannot be read: before training starts.
    """

    def __init__(
        self,
        images: PathLike,
        num_frames: int,
        height: int,
        width: int,
        seeds: Sequence[int] = (42,),
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        sampling_steps: int = 0,
        decode_chunk_size: int = 0,
        log: Optional[MetricsLog] = None,
    ) -> None:
        self._paths: List[Path] = find_images(images, f"{FLAG}images")
        self._images = [fit_image(read_image(path), height, width) for path in self._paths]
        self._num_frames, self._seeds, self._sampling_steps = num_frames, list(seeds), sampling_steps
        self._settings = ClipSettings(fps, motion_bucket_id, noise_aug_strength, decode_chunk_size)
        self._log = log

    def on_validation(self, step: int, trainer: TrainerView) -> None:
        """Makes all videos with the weights of this step."""
        with trainer.averaged(), _sampling_steps(trainer.engine, self._sampling_steps):
            for path, image in zip(self._paths, self._images):
                for seed in self._seeds:
                    name = f"{path.stem}_seed{seed}"
                    with keep_training(f"the validation video {name} of step {step}"):
                        frames = self._sample(trainer.engine, image, seed)
                        self._write(frames, name, step, Path(trainer.output_dir) / FOLDER)

    def _sample(self, engine: DiffusionEngine, image: np.ndarray, seed: int) -> np.ndarray:
        """(t, h, w, 3), uint8."""
        rng = np.random.default_rng(seed)
        pixels = to_pixels(image)
        decoded = generate(engine, pixels, draw_noise(engine, pixels, self._num_frames, rng), rng, self._settings)
        if not np.isfinite(decoded).all():
            logger.warning("a validation video holds values that are no numbers; they are shown black")
        return to_frames(np.nan_to_num(decoded, nan=-1.0))[0]

    def _write(self, frames: np.ndarray, name: str, step: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fps = self._settings.fps
        settings = {"step": step, "motion_bucket_id": self._settings.motion_bucket_id, "fps": fps}
        write_video(frames, folder / f"{name}_step{step:08d}.mp4", fps, settings, "mp4")
        if self._log is not None:
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "video.gif"
                write_gif(frames, path, fps, name)
                self._log.animation(step, f"{FOLDER}/{name}", path.read_bytes(), *frames.shape[1:3])


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
