"""The options of a video, each stated once: for flags, pipeline, validation and the saved settings."""

from dataclasses import dataclass, fields
from typing import Annotated, Dict, Literal, Optional, Tuple, Union

from data.motion import MAX_BUCKET
from gm.config.values import OptionError, Options, Range
from gm.sampling.guidance import EVERY_SIGMA, ConstantGuider, Guider, Scale
from gm.sampling.samplers import MAX_STEPS, SAMPLERS, Sampler, with_parts
from gm.sampling.schedules import SCHEDULES, SVD_SIGMA_MAX, EDMDiscretization, Sigma
from modules.video_guidance import GUIDERS

SIZE_MULTIPLE = 64  # pixels: 8x from the autoencoder, 8x from the UNet
LEAST_TILE = 128  # pixels: a smaller one is all seam
MAX_FRAMES = 1024
TRAINED_FPS = (5, 30)

Frames = Annotated[int, Range(1, MAX_FRAMES)]
Size = Annotated[int, Range(SIZE_MULTIPLE, 8192, SIZE_MULTIPLE)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Share = Annotated[float, Range(0, 1)]
LoRAScale = Annotated[float, Range(-100, 100)]


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
    """frames decoded at a time; fewer take less memory, more flicker less; 0 decodes all at once"""
    sampling_steps: Annotated[int, Range(0, MAX_STEPS)] = 0
    """steps of the sampler; 0 takes the YAML's"""


@dataclass
class SamplingOptions(Options):
    """How the noise becomes a clip."""

    sampler: Optional[Literal[tuple(SAMPLERS)]] = None
    """by default the YAML's; euler is SVD's own, consistency is for UNets distilled to few steps, such as
    AnimateLCM-SVD's"""
    schedule: Optional[Literal[tuple(SCHEDULES)]] = None
    """noise levels: karras (SVD's own) or ays (Align Your Steps: good at 10 steps); by default the YAML's"""
    guider: Optional[Literal[tuple(GUIDERS)]] = None
    """how the guidance scale runs over the frames: linear (from min to max), constant, triangle or trapezoid (max in
    the middle); by default the YAML's"""
    min_cfg: Optional[Scale] = None
    """lowest guidance scale; by default the YAML's"""
    max_cfg: Optional[Scale] = None
    """highest guidance scale; by default the YAML's"""
    guidance_interval: Optional[Tuple[Sigma, Sigma]] = None
    """the lowest and the highest noise level (sigma) that is guided; outside it a step takes half the time; by default
    all are"""
    feature_cache: Annotated[int, Range(1, MAX_STEPS)] = 1
    """evaluate the whole UNet at every so many steps only, and its last stage alone in between (DeepCache): 2 takes
    little more than half the time at full size and costs some quality; 1 is exact"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance_interval is not None and not self.guidance_interval[0] < self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise OptionError(f"guidance_interval: [{low:g},{high:g}] cannot be used; the second sigma is the larger")


@dataclass
class FrameOptions(Options):
    """How many frames of what size are made."""

    num_frames: Optional[Frames] = None
    """frames to generate; by default what the model was trained for"""
    height: Optional[Size] = None
    """of the video in pixels, a multiple of 64; by default what the model was trained for"""
    width: Optional[Size] = None
    """of the video in pixels, a multiple of 64; by default what the model was trained for"""
    crop_offset: Tuple[Share, Share] = (0.5, 0.5)
    """what part of an image of another shape is kept: vertical and horizontal position of the crop, 0 (top, left) to 1
    (bottom, right)"""


@dataclass
class WeightOptions(Options):
    """How the weights are loaded and computed with."""

    lora: Optional[str] = None
    """a LoRA file of train.py's, merged into the UNet while it is loaded"""
    lora_scale: LoRAScale = 1.0
    """how strongly the LoRA acts; 1 as it was trained, 0 not at all"""
    amp_level: Literal["auto", "O0", "O2"] = "auto"
    """O0 computes in fp32, O2 in fp16 (the autoencoder and all norms stay in fp32); auto is O2 on Ascend and O0 on
    CPU"""
    offload: bool = False
    """load the weights of each part of the model when it starts and release them when it ends: less memory, more
    reading"""
    tile_size: Union[Literal[0], Annotated[int, Range(LEAST_TILE, 8192, SIZE_MULTIPLE)]] = 0
    """height and width in pixels that the autoencoder takes at once, a multiple of 64 from 128 on: larger images are
    encoded and decoded in tiles that overlap by a fourth, for less memory; 0 takes any size"""
    fuse_kernels: Optional[bool] = None
    """on CPU in graph mode, compile chains of small operators to one kernel each: a seventh off a step's time and a
    quarter off its memory at full size; needs g++, and keeps kernels in the user's cache folder; by default for UNets
    of over 100 million parameters, where g++ is there"""
    compile_cache: Optional[bool] = None
    """in graph mode, keep what was compiled in the user's cache folder, so that the next run of the same size need not
    compile it again (not with feature_cache); by default on CPU"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora is None and self.lora_scale != 1:
            raise OptionError(f"lora_scale: {self.lora_scale:g} cannot be used without a LoRA; name one as `lora`")


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
