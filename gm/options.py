"""The options of whatever is made of noise, each stated once: those that pictures and videos share, and a picture's."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, Sequence, Tuple, Union

from gm.config.values import OptionError, Options, Range
from gm.files import FilePath
from gm.networks.prompt import COMFYUI, Rule
from gm.sampling.guidance import EVERY_SIGMA, ConstantGuider, Guider, Scale
from gm.sampling.samplers import MAX_STEPS, SAMPLERS, Sampler
from gm.sampling.schedules import Sigma
from gm.sampling.training_levels import IMAGE_SCHEDULES, TRAINING_STEPS, Timestep, image_schedule

SIZE_MULTIPLE = 64  # pixels: 8x from the autoencoder, 8x from the UNet
LEAST_TILE = 128  # pixels: a smaller one is all seam

Size = Annotated[int, Range(SIZE_MULTIPLE, 8192, SIZE_MULTIPLE)]
Seed = Annotated[int, Range(0, 2**64 - 1)]
LoRAScale = Annotated[float, Range(-100, 100)]


@dataclass
class WeightOptions(Options):
    """How the weights are loaded and computed with."""

    lora: Optional[FilePath] = None
    """a LoRA, merged into the weights while they are loaded: a file of this toolkit's, ComfyUI's, kohya's, PEFT's or
    diffusers', or a folder of PEFT's"""
    lora_scale: LoRAScale = 1.0
    """how strongly the LoRA acts; 1 as it was trained, 0 not at all"""
    lora_alpha: Optional[Annotated[float, Range(1e-6, 1e6)]] = None
    """alpha of a LoRA whose file does not keep it; by default its rank"""
    checkpoint_sha256: Optional[str] = None
    """the hash that the weights' file has to have, in hexadecimal; what a video's or a picture's settings say of it"""
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
        for name, value, unset in (("lora_scale", self.lora_scale, 1), ("lora_alpha", self.lora_alpha, None)):
            if self.lora is None and value != unset:
                raise OptionError(f"{name}: {value:g} cannot be used without a LoRA; name one as `lora`")


@dataclass
class StepOptions(Options):
    """How the sampler goes from one noise level to the next."""

    sampler: Optional[Literal[tuple(SAMPLERS)]] = None
    """by default the model's: euler for videos, dpmpp2m for pictures; consistency is for UNets distilled to few steps,
    such as AnimateLCM-SVD's and LCM's"""
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
class PromptOptions(Options):
    """How a prompt becomes a picture."""

    height: Optional[Size] = None
    """of the picture in pixels, a multiple of 64; by default what the model was trained for"""
    width: Optional[Size] = None
    """of the picture in pixels, a multiple of 64; by default what the model was trained for"""
    sampling_steps: Annotated[int, Range(0, TRAINING_STEPS)] = 0
    """steps of the sampler; 0 takes the YAML's"""
    schedule: Optional[Literal[IMAGE_SCHEDULES]] = None
    """noise levels: karras; linspace (ComfyUI's "normal"); leading (diffusers' default); trailing (for few steps, such
    as Turbo's, LCM's, Lightning's); sgm (ComfyUI's "sgm_uniform"); ays (Align Your Steps: good at 10
    steps); by default the YAML's"""
    cfg: Optional[Scale] = None
    """guidance scale: how closely the prompt is followed; 1 is without guidance, at half the time, for UNets distilled
    to few steps; by default the YAML's"""
    timestep: Optional[Timestep] = None
    """what the network is told of a noise level between two of its training: the nearest (ComfyUI), or what is
    interpolated; quantized moves the level itself to the nearest (sgm); by default as diffusers does with the sampler:
    nearest for dpmpp2m, else interpolated"""
    prompt_weights: Rule = COMFYUI
    """what (word:1.2) in a prompt does: comfyui, a1111 (they differ), or off: brackets are text"""


@dataclass
class PictureOptions(WeightOptions, StepOptions, PromptOptions):
    """Everything that a picture is made with, beside the prompts and the two files of the model."""


def choose_picture_sampler(current: Sampler, align_your_steps: Sequence[int], options: PictureOptions) -> Sampler:
    """The YAML's sampler with every part that the options name replaced.

    Args:
        align_your_steps: the model's, see :func:`gm.sampling.training_levels.image_schedule`.
    """
    schedule = current.discretization
    if options.schedule is not None:
        schedule = image_schedule(options.schedule, align_your_steps)
    guider = current.guider if options.cfg is None else ConstantGuider(options.cfg)
    guider.interval = tuple(options.guidance_interval or EVERY_SIGMA)
    return with_parts(current, options.sampler, options.sampling_steps, schedule, guider)


def with_parts(
    current: Sampler, name: Optional[str], num_steps: int, discretization: Any, guider: Guider
) -> Sampler:
    """The current sampler, or one of the class of that name, with these parts; 0 keeps the number of steps."""
    kind = SAMPLERS.get(name, type(current))
    sampler = current if kind is type(current) else kind(discretization, guider)
    sampler.discretization, sampler.guider, sampler.num_steps = discretization, guider, num_steps or current.num_steps
    return sampler
