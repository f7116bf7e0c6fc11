"""A UNet that a test can afford to train, its twin in diffusers, and batches."""

from typing import Dict, Iterable, List, Optional, Tuple

import numpy as np
from mindspore import Parameter

from gm.networks.conditioner import Conditioning
from gm.sampling.denoiser import VScalingWithEDMcNoise
from gm.training.distributed import Communicator
from gm.training.objective import ConditioningDropout, DiffusionLoss, LogNormal, Objective, SampleRandom, TrainInputs
from gm.training.optim import AdamW, AdamWOptions, WeightAverage
from gm.training.train_step import LossScale, NoLossScale, TrainStep
from gm.weights.parameters import set_parameter
from modules.training.stages import freeze
from modules.video_unet import VideoUNet

CONTEXT, VECTOR = 24, 96
# The real classes in two levels, one of them without attention, as SVD's last one.
UNET = {
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (1,),
    "num_head_channels": 16,
    "context_dim": CONTEXT,
    "adm_in_channels": VECTOR,
}


def random_unet(seed: int = 0, **options) -> VideoUNet:
    """Every parameter non-zero, so that no branch is silent, and scaled so that activations keep their size."""
    net = VideoUNet(**{**UNET, **options})
    rng = np.random.default_rng(seed)
    for name, parameter in net.parameters_and_names():
        parameter.name = name
        set_parameter(parameter, random_array(name, tuple(parameter.shape), rng))
    return net


def random_array(name: str, shape: Tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(shape)
    if len(shape) > 1:
        values /= np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.2 * values
    elif "mix_factor" not in name:
        values *= 0.2
    return values.astype(np.float32)


def random_clips(b: int = 2, t: int = 3, size: int = 8, seed: int = 0) -> Tuple[np.ndarray, Conditioning]:
    rng = np.random.default_rng(seed)
    shapes = ((b, t, 4, size, size), (b, VECTOR), (b, 1, CONTEXT), (b, 4, size, size))
    latents, *cond = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return latents, Conditioning(*cond)


def make_inputs(sigma: Iterable[float] = (0.3, 5.0), seed: int = 0, **shape) -> TrainInputs:
    """Of random clips, at given noise levels, without dropout."""
    sigma = np.array(sigma)
    latents, cond = random_clips(len(sigma), seed=seed, **shape)
    noise = np.random.default_rng(seed + 1000).standard_normal(latents.shape, np.float32)
    return make_objective().inputs(latents, cond, sigma, noise)


def make_objective(dropout: ConditioningDropout = ConditioningDropout(0, 0, 0)) -> Objective:  # noqa: B008, immutable
    return Objective(VScalingWithEDMcNoise(), LogNormal(0.7, 1.6), dropout)


def randoms(count: int, first: int = 0, seed: int = 0) -> List[SampleRandom]:
    return [SampleRandom(seed, 0, first + index) for index in range(count)]


def make_step(
    net: VideoUNet,
    parameters: Optional[Dict[str, Parameter]] = None,
    options: AdamWOptions = AdamWOptions(),  # noqa: B008, immutable
    ema_decay: float = 0.0,
    loss_scale: Optional[LossScale] = None,
    **settings,
) -> TrainStep:
    """A step that trains the given parameters, by default all."""
    chosen = list((freeze(net, lambda name: True) if parameters is None else parameters).values())
    average = WeightAverage(chosen, ema_decay) if ema_decay else None
    scale = NoLossScale() if loss_scale is None else loss_scale
    return TrainStep(DiffusionLoss(net), chosen, AdamW(chosen, options), average, scale, Communicator(), **settings)


def values(parameters: Iterable[Parameter]) -> Dict[str, np.ndarray]:
    """name -> a copy of the value."""
    return {parameter.name: np.array(parameter.asnumpy()) for parameter in parameters}
