"""Videos and pictures of one model after the other: what the model's process does."""

import re
import time
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, NamedTuple, Optional, Union

from data.image_reader import fit_image, read_image
from data.video_writer import GIF_MAX_FPS, write_picture, write_video
from gm.backend.memory import explain_out_of_memory, memory_limit
from gm.backend.runtime import setup_runtime
from gm.weights.model_kind import portable
from svd_tools.web.preview import Preview
from svd_tools.web.process import Reporter

REMEDIES = (
    "decode chunk size 1 (decodes one frame at a time), offload (holds the weights of one part at a time), tile size "
    "512 (encodes and decodes in tiles), fewer frames, a smaller height and width"
)
FORMATS = ("mp4", "gif", "webp")
PICTURE = "picture.png"  # a picture's name; a video has that of the one it was made of
STEM_LENGTH = 48  # characters of that name


class Weights(NamedTuple):
    """What a loaded model is told apart by: two files, and the options that act while it is loaded
    (:data:`gm.pipeline.LOADED_WITH`)."""

    config: str
    checkpoint: str
    lora: Optional[str] = None
    lora_scale: float = 1.0
    lora_alpha: Optional[float] = None
    amp_level: str = "auto"
    offload: bool = False


class VideoRequest(NamedTuple):
    """A video to make: the model, the other fields of :class:`modules.options.VideoOptions`, the seed, a folder for
    the files, and the picture with the name that it was uploaded under."""

    weights: Weights
    options: Dict[str, Any]
    seed: int
    folder: str
    picture: str
    name: str


class PictureRequest(NamedTuple):
    """A picture to make: as above, with the fields of :class:`gm.options.PictureOptions`, and the prompts."""

    weights: Weights
    options: Dict[str, Any]
    seed: int
    folder: str
    prompt: str
    negative_prompt: Optional[str]


Request = Union[VideoRequest, PictureRequest]


class Progress(NamedTuple):
    """Where a job is: its stage, how many steps of it are done, and the seconds left of it."""

    stage: str
    done: int = 0
    total: int = 0
    seconds_left: Optional[float] = None


class Maker:
    """Makes videos or pictures with one model, loaded once: another model is for another process, so that memory is
    given back for certain.

    Args:
        mode, device_target: of :func:`gm.backend.runtime.setup_runtime`.
    """

    def __init__(self, mode: Optional[int], device_target: str) -> None:
        self.runtime = setup_runtime(mode, device_target)
        self.weights: Optional[Weights] = None

    def __call__(self, request: Request, report: Reporter) -> Dict[str, Any]:
        """Writes the result into the request's folder, a video once per format.

        A video's settings are flags of image_to_video.py. Reports :class:`Progress`, and previews as data URLs.

        Returns:
            The settings that made it, as the commands store them.

        Raises:
            UserError: something cannot be used, or memory ran out.
        """
        make = self._video if isinstance(request, VideoRequest) else self._picture
        with memory_limit(), explain_out_of_memory(REMEDIES):
            report(Progress("loading"))
            return make(request, report)

    def _video(self, request: VideoRequest, report: Reporter) -> Dict[str, Any]:
        from modules.pipeline import SVDPipeline

        picture = read_image(request.picture)
        pipeline = self._loaded(SVDPipeline, request)
        fitted = fit_image(picture, pipeline.height, pipeline.width, tuple(pipeline.crop_offset))
        pipeline.engine.progress = lambda title: Steps(title, report)
        pipeline.engine.watch = Preview(fitted, pipeline.fps, pipeline.engine.scale_factor, report)
        report(Progress("conditioning"))
        frames = pipeline(picture, request.seed)
        report(Progress("writing"))
        settings = self._settings(request, "SVD", {"image": request.name, "background": "white"})
        stem = re.sub(r"\W+", "_", Path(request.name).stem)[:STEM_LENGTH].strip("_") or "video"
        for kind in FORMATS:
            if kind != "gif" or pipeline.fps <= GIF_MAX_FPS:
                path = Path(request.folder) / f"{stem}_seed{request.seed}.{kind}"
                write_video(frames, path, pipeline.fps, {**settings, "output_format": kind}, kind)
        return settings

    def _picture(self, request: PictureRequest, report: Reporter) -> Dict[str, Any]:
        from gm.text_to_image import StableDiffusionPipeline

        pipeline = self._loaded(StableDiffusionPipeline, request)
        pipeline.engine.progress = lambda title: Steps(title, report)
        report(Progress("reading"))
        picture = pipeline(pipeline.encode(request.prompt, request.negative_prompt), request.seed)
        report(Progress("writing"))
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        settings = self._settings(request, "SD", prompts)
        write_picture(picture, Path(request.folder) / PICTURE, settings)
        return settings

    def _loaded(self, pipeline: Any, request: Request) -> Any:
        """The pipeline of the request's model, with the request's options."""
        if self.weights is None:
            self.pipeline = pipeline(**{**request.options, **request.weights._asdict()})
            self.weights = request.weights
        else:
            self.pipeline.update(**request.options)
        return self.pipeline

    def _settings(self, request: Request, group: str, first: Dict[str, Any]) -> Dict[str, Any]:
        return {
            **first,
            "seed": request.seed,
            "mode": self.runtime.mode,
            "device_target": self.runtime.device,
            group: {"config": portable(request.weights.config), **self.pipeline.settings},
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
