"""Validation videos: the same images and seeds every time, so that a change is the model's."""

import logging
import tempfile
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Iterator, List, Optional

import numpy as np

from data.file_search import find_images
from data.image_reader import fit_image, read_image
from data.video_writer import write_gif, write_video
from gm.files import PathLike
from gm.model import DiffusionEngine
from gm.training.callbacks import Callback, TensorBoardLog, keep_training
from gm.training.trainer import Trainer
from modules.compatibility import Sgm, to_pixels
from modules.pipeline import generate
from modules.training.options import ValidationOptions

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
        log: TensorBoard's files.
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
        **options: Any,
    ) -> None:
        self._paths: List[Path] = find_images(images, f"{FLAG}images")
        self._images = [fit_image(read_image(path), height, width) for path in self._paths]
        self._options = ValidationOptions(**{"every": 1, "images": str(images), **options})
        self._num_frames, self._log = num_frames, log

    def on_validation(self, step: int, trainer: Trainer) -> None:
        """Makes all videos with the weights of this step."""
        with trainer.averaged(), _sampling_steps(trainer.engine, self._options.sampling_steps):
            for path, image in zip(self._paths, self._images):
                for seed in self._options.seeds:
                    name = f"{path.stem}_seed{seed}"
                    with keep_training(f"the validation video {name} of step {step}"):
                        frames = self._sample(trainer.engine, image, seed)
                        self._write(frames, name, step, Path(trainer.output_dir) / FOLDER)

    def _sample(self, engine: DiffusionEngine, image: np.ndarray, seed: int) -> np.ndarray:
        """(t, h, w, 3), uint8."""
        rng = np.random.default_rng(seed)
        pixels = to_pixels(image)
        noises = Sgm.draw(rng, pixels.shape, (1, *engine.clip_shape(self._num_frames, *pixels.shape[2:])))
        return Sgm.to_frames(generate(engine, pixels, noises, rng, self._options))[0]

    def _write(self, frames: np.ndarray, name: str, step: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fps = self._options.fps
        settings = {"step": step, "motion_bucket_id": self._options.motion_bucket_id, "fps": fps}
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
