"""Videos of one model after the other: what the model's process does."""

import io
import time
from base64 import b64encode
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, NamedTuple, Optional

import numpy as np
from PIL import Image

from data.image_reader import fit_image, read_image
from data.video_writer import GIF_MAX_FPS, write_video
from gm.backend.memory import explain_out_of_memory, memory_limit
from gm.backend.runtime import setup_runtime
from svd_tools.web.process import Reporter

REMEDIES = (
    "decode chunk size 1 (decodes one frame at a time), offload (holds the weights of one part at a time), tile size "
    "512 (encodes and decodes in tiles), fewer frames, a smaller height and width"
)
FORMATS = ("mp4", "gif", "webp")
STAGES = {"loading": "Loading the model", "conditioning": "Looking at the picture", "sampling": "Sampling",
          "decoding": "Decoding the frames", "writing": "Writing the video"}  # fmt: skip
RIDGE = 1e-2  # of the map from latents to colours; latents are about 1
PREVIEW_QUALITY = 80


class Weights(NamedTuple):
    """What a loaded model is told apart by: two files, and the options that act while it is loaded."""

    config: str
    checkpoint: str
    lora: Optional[str] = None
    lora_scale: float = 1.0
    amp_level: str = "auto"
    offload: bool = False


class Request(NamedTuple):
    """A video to make: the model, the other fields of :class:`modules.options.VideoOptions`, the picture, the seed and
    a folder for the files."""

    weights: Weights
    options: Dict[str, Any]
    picture: str
    name: str
    seed: int
    folder: str


class Progress(NamedTuple):
    """Where a video is: its stage (a key of `STAGES`), how many steps of it are done, and the time left of it."""

    stage: str
    done: int = 0
    total: int = 0
    seconds_left: Optional[float] = None


class Videos:
    """Makes videos, with the model loaded once.

    Args:
        mode, device_target: of :func:`gm.backend.runtime.setup_runtime`.
    """

    def __init__(self, mode: Optional[int], device_target: str) -> None:
        self.runtime = setup_runtime(mode, device_target)
        self.weights: Optional[Weights] = None

    def __call__(self, request: Request, report: Reporter) -> Dict[str, Any]:
        """Writes the video into the request's folder, once per format.

        Reports :class:`Progress`, and previews as data URLs.

        Returns:
            The settings that made it.

        Raises:
            UserError: something cannot be used, or memory ran out.
        """
        with memory_limit(), explain_out_of_memory(REMEDIES):
            report(Progress("loading"))
            picture = read_image(request.picture)
            self._load(request)
            pipeline = self.pipeline
            fitted = fit_image(picture, pipeline.height, pipeline.width, tuple(pipeline.crop_offset))
            pipeline.engine.progress = lambda title: Steps(title, report)
            pipeline.engine.watch = Preview(fitted, pipeline.fps, pipeline.engine.scale_factor, report)
            report(Progress("conditioning"))
            frames = pipeline(picture, request.seed)
            report(Progress("writing"))
            settings = describe(pipeline, request, self.runtime)
            for name in FORMATS:
                if name != "gif" or pipeline.fps <= GIF_MAX_FPS:
                    write_video(frames, Path(request.folder) / f"video.{name}", pipeline.fps, settings, name)
            return settings

    def _load(self, request: Request) -> None:
        """The pipeline of the request's model and options; the process is started anew for another model, so that
        memory is given back for certain."""
        from modules.pipeline import SVDPipeline

        if self.weights is None:
            weights = request.weights._asdict()
            self.pipeline = SVDPipeline(**{**request.options, **weights})
            self.weights = request.weights
        self.pipeline.update(**request.options)


def describe(pipeline: Any, request: Request, runtime: Any) -> Dict[str, Any]:
    """What made a video, as image_to_video.py stores it."""
    return {
        "image": request.name,
        "background": "white",
        "seed": request.seed,
        "mode": runtime.mode,
        "device_target": runtime.device,
        "SVD": {"config": Path(request.weights.config).name, **pipeline.settings},
    }


class Steps:
    """Wraps the iteration over a stage's steps, and reports each; the engine's `progress`."""

    def __init__(self, stage: str, report: Reporter) -> None:
        self.stage, self.report = stage, report

    def __call__(self, steps: Iterable[Any]) -> Iterator[Any]:
        """Yields the steps."""
        steps = list(steps)
        start = time.monotonic()
        for done, step in enumerate(steps):
            passed = time.monotonic() - start
            left = passed / done * (len(steps) - done) if done else None
            self.report(Progress(self.stage, done, len(steps), left))
            yield step
        self.report(Progress(self.stage, len(steps), len(steps), 0.0))


class Preview:
    """Shows estimates of the clean latents as small pictures that move; the engine's `watch`.

    Latents become colours by one linear map for each video: the least-squares fit of the picture's own latent to its
    own colours, so that it suits any autoencoder.

    Args:
        fitted: (height, width, 3) uint8, the picture as the model sees it.
        fps: of the preview.
        scale_factor: what latents are multiplied by, but not the picture's own.
        report: gets data URLs of WebP pictures.
    """

    def __init__(self, fitted: np.ndarray, fps: float, scale_factor: float, report: Callable[[str], None]) -> None:
        self.fitted, self.fps, self.scale_factor, self.report = fitted, fps, scale_factor, report
        self.colours: Optional[np.ndarray] = None

    def __call__(self, cond: Any, latents: np.ndarray) -> None:
        """Reports the frames of the first clip; latents: (1, t, z, h, w)."""
        if self.colours is None:
            self.colours = fit_colours(cond.concat[0] * self.scale_factor, self.fitted)
        frames = to_colours(latents[0], self.colours)
        images = [Image.fromarray(frame) for frame in frames]
        file = io.BytesIO()
        options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / self.fps), "loop": 0}
        images[0].save(file, "webp", quality=PREVIEW_QUALITY, **options)
        self.report(f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}")


def fit_colours(latent: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The affine map from latents to colours that fits one image best, by ridge regression.

    Args:
        latent: (z, h, w), of the image.
        image: (H, W, 3) uint8.

    Returns:
        (z + 1, 3): the last row is the constant.
    """
    height, width = latent.shape[1:]
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    targets = np.asarray(small, np.float64).reshape(-1, 3)  # h w c -> (h w) c
    inputs = _with_ones(latent.astype(np.float64).transpose(1, 2, 0).reshape(height * width, -1))  # z h w -> (h w) z
    penalty = RIDGE * len(inputs) * np.diag([*[1.0] * (inputs.shape[1] - 1), 0.0])
    return np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)


def to_colours(latents: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(t, z, h, w) -> (t, h, w, 3) uint8."""
    values = _with_ones(latents.transpose(0, 2, 3, 1)) @ colours  # t z h w -> t h w z
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _with_ones(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.ones((*values.shape[:-1], 1))], axis=-1)
