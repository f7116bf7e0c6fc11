"""The options of a video, each stated once: for flags, pipeline, validation and the saved settings."""

from dataclasses import dataclass, fields
from typing import Annotated, Dict, Literal, Optional, Tuple

from data.motion import MAX_BUCKET
from gm.config.values import OptionError, Options, Range, show
from gm.options import Size, StepOptions, WeightOptions, with_parts
from gm.sampling.guidance import EVERY_SIGMA, ConstantGuider, Guider, Scale
from gm.sampling.noise import GENERATORS
from gm.sampling.samplers import MAX_STEPS, Sampler
from gm.sampling.schedules import SCHEDULES, SVD_SIGMA_MAX, EDMDiscretization
from modules.compatibility import RESIZES, TOOLS
from modules.video_guidance import GUIDERS

MAX_FRAMES = 1024
TRAINED_FPS = (5, 30)

Frames = Annotated[int, Range(1, MAX_FRAMES)]
Share = Annotated[float, Range(0, 1)]


@dataclass
class ConditioningOptions(Options):
    """The numbers that a clip is conditioned on: each is an argument of
    :func:`modules.conditioning.conditioning_inputs`."""

    fps: Annotated[int, Range(1, 1000)] = 7
    """frames per second of the video, 5 to 30 recommended; the model is conditioned on it"""
    motion_bucket_id: Annotated[int, Range(0, MAX_BUCKET)] = 127
    """how much motion"""
    noise_aug_strength: Annotated[float, Range(0, 100)] = 0.02
    """standard deviation of the noise added to the image (range -1..1) before it is encoded: more means more motion
    and less likeness"""

    def numbers(self) -> Dict[str, float]:
        """Name -> value of each."""
        return {item.name: getattr(self, item.name) for item in fields(ConditioningOptions)}


@dataclass
class ClipOptions(ConditioningOptions):
    """What a clip is conditioned on, and how it is sampled and decoded, as a command's video and in validation."""

    decode_chunk_size: Annotated[int, Range(0, MAX_FRAMES)] = 0
    """frames decoded at a time; fewer take less memory, more flicker less; 0 decodes all at once, or on Ascend as many
    as fit"""
    sampling_steps: Annotated[int, Range(0, MAX_STEPS)] = 0
    """steps of the sampler; 0 takes the model's: 25 (svd_xt: 30)"""


@dataclass
class SamplingOptions(StepOptions):
    """How the noise becomes a clip."""

    schedule: Optional[Literal[tuple(SCHEDULES)]] = None
    """noise levels: karras or ays (Align Your Steps: good at 10 steps); by default the model's: karras"""
    guider: Optional[Literal[tuple(GUIDERS)]] = None
    """how the guidance scale runs over the frames: linear (from min to max), constant, triangle or trapezoid (max in
    the middle); by default the model's: linear"""
    min_cfg: Optional[Scale] = None
    """lowest guidance scale; by default the model's: 1 (svd_xt: 1.5)"""
    max_cfg: Optional[Scale] = None
    """highest guidance scale; by default the model's: 2.5 (svd_xt: 3)"""


@dataclass
class FrameOptions(Options):
    """How many frames of what size are made, and how the image and the seed become what the model starts from."""

    num_frames: Optional[Frames] = None
    """frames to generate; by default what the model was trained for: 14 (svd_xt: 25)"""
    height: Optional[Size] = None
    """of the video in pixels, a multiple of 64; by default what the model was trained for: 576"""
    width: Optional[Size] = None
    """of the video in pixels, a multiple of 64; by default what the model was trained for: 1024"""
    crop_offset: Tuple[Share, Share] = (0.5, 0.5)
    """what part of an image of another shape is kept: vertical and horizontal position of the crop, 0 (top, left) to 1
    (bottom, right)"""
    like: Literal[tuple(TOOLS)] = "sgm"
    """the tool whose video a seed gives: its noise, resizing, view of CLIP, augmentation and rounding; sgm is Stability
    AI's own code and this toolkit's way"""
    noise: Optional[Literal[tuple(GENERATORS)]] = None
    """the generator of the seed's noise; by default numpy, and torch (that of PyTorch's CPU generator) with
    like=diffusers and like=comfyui"""
    resize: Optional[Literal[tuple(RESIZES)]] = None
    """how an image of another shape gets the video's: crop (sgm), squash (diffusers) or bilinear (ComfyUI's: cropped in
    the middle, not antialiased); by default that of `like`"""

    def __post_init__(self) -> None:
        super().__post_init__()
        resize = self.resize or TOOLS[self.like].resize
        if resize != "crop" and tuple(self.crop_offset) != (0.5, 0.5):
            raise OptionError(f"crop_offset: {show(self.crop_offset)} cannot be used with resize={resize}")


@dataclass
class VideoOptions(WeightOptions, SamplingOptions, ClipOptions, FrameOptions):
    """Everything that a video is made with, beside the two files of the model."""


def choose_sampler(current: Sampler, options: SamplingOptions) -> Sampler:
    """The YAML's sampler with every part that the options name replaced.

    Raises:
        OptionError: options that contradict each other.
    """
    discretization = current.discretization
    schedule = SCHEDULES.get(options.schedule, type(discretization))
    if not isinstance(discretization, schedule):
        discretization = schedule(sigma_max=SVD_SIGMA_MAX) if schedule is EDMDiscretization else schedule()
    guider = _choose_guider(current.guider, options)
    return with_parts(current, options.sampler, options.sampling_steps, discretization, guider)


def _choose_guider(current: Guider, options: SamplingOptions) -> Guider:
    kind = GUIDERS.get(options.guider, type(current))
    high = current.max_scale if options.max_cfg is None else options.max_cfg
    low = current.min_scale if options.min_cfg is None else options.min_cfg
    if kind is ConstantGuider:
        low = high
    if options.min_cfg not in (None, low):
        raise OptionError("min_cfg: the constant guider has one scale; give max_cfg alone")
    guider = kind(high, low)
    guider.interval = tuple(options.guidance_interval or EVERY_SIGMA)
    return guider
