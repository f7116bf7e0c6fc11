"""Stable Video Diffusion as a model: latent diffusion whose images are the frames of clips."""

from functools import cached_property
from math import isqrt
from typing import Tuple

from gm.model import ConditionerConfig, DiffusionEngine, FirstStageConfig, NetworkConfig
from gm.sampling.denoiser import Denoiser
from gm.sampling.samplers import Sampler


class VideoDiffusionEngine(DiffusionEngine):
    """Latent video diffusion from one frame.

    Args:
        num_frames: what the model was trained for.
        network, denoiser, conditioner, first_stage, sampler, scale_factor, height, width: see the parent class.
    """

    def __init__(
        self,
        network: NetworkConfig,
        denoiser: Denoiser,
        conditioner: ConditionerConfig,
        first_stage: FirstStageConfig,
        sampler: Sampler,
        scale_factor: float = 0.18215,
        num_frames: int = 14,
        height: int = 576,
        width: int = 1024,
    ) -> None:
        super().__init__(network, denoiser, conditioner, first_stage, sampler, scale_factor, height, width)
        self.num_frames = num_frames

    @cached_property
    def clip_image_size(self) -> int:
        """Rows and columns of the images that CLIP's network takes."""
        shapes = {name.rpartition(".visual.")[2]: shape for name, shape in self.conditioner.shapes().items()}
        return isqrt(shapes["positional_embedding"][0] - 1) * shapes["conv1.weight"][-1]

    def clip_shape(self, num_frames: int, height: int, width: int) -> Tuple[int, int, int, int]:
        """(t, z, h, w) of a clip's latents, for its size in pixels."""
        return (num_frames, *self.latent_shape(height, width))
