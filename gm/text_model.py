"""Stable Diffusion as a model: latent diffusion from a prompt."""

from typing import Optional, Sequence, Tuple

import numpy as np

from gm.model import ConditionerConfig, DiffusionEngine, FirstStageConfig, NetworkConfig
from gm.networks.conditioner import Conditioning
from gm.networks.prompt import Prompt
from gm.networks.text import TEXT
from gm.sampling.denoiser import Denoiser
from gm.sampling.samplers import Sampler
from gm.sampling.training_levels import ALIGN_YOUR_STEPS_SD


class TextToImageEngine(DiffusionEngine):
    """Latent diffusion from a prompt.

    Args:
        network, denoiser, conditioner, first_stage, sampler, scale_factor, height, width, conditioner_prefix: see the
            parent class.
        force_zeros_for_empty_prompt: where no negative prompt is given, guidance leads away from zeros (XL), not from
            the empty prompt.
        align_your_steps: falling indices of training levels, tuned for as many steps.
    """

    def __init__(
        self,
        network: NetworkConfig,
        denoiser: Denoiser,
        conditioner: ConditionerConfig,
        first_stage: FirstStageConfig,
        sampler: Sampler,
        scale_factor: float = 0.18215,
        height: int = 512,
        width: int = 512,
        conditioner_prefix: str = "conditioner.",
        force_zeros_for_empty_prompt: bool = False,
        align_your_steps: Sequence[int] = ALIGN_YOUR_STEPS_SD,
    ) -> None:
        super().__init__(
            network, denoiser, conditioner, first_stage, sampler, scale_factor, height, width, conditioner_prefix
        )
        self.force_zeros_for_empty_prompt, self.align_your_steps = force_zeros_for_empty_prompt, align_your_steps

    def condition_on_prompts(
        self, prompt: Prompt, negative: Optional[Prompt], height: int, width: int
    ) -> Tuple[Conditioning, Conditioning]:
        """What guidance leads to and away from, for a picture of this size in pixels, which XL is conditioned on.

        Args:
            negative: None where none is given, which for XL is not the empty one.
        """
        size = np.array([[height, width]], np.float32)
        sizes = {
            "original_size_as_tuple": size,
            "crop_coords_top_left": np.zeros_like(size),
            "target_size_as_tuple": size,
        }
        if negative is None and not self.force_zeros_for_empty_prompt:
            negative = prompt._replace(text="")
        return self.condition({TEXT: prompt, **sizes}, {TEXT: negative, **sizes})
