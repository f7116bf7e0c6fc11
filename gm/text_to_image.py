"""Text to image: from a prompt to a picture, with every setting of the command line."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import numpy as np

from gm.networks.prompt import Prompt
from gm.options import PictureOptions, choose_picture_sampler
from gm.pipeline import Pipeline, common_settings, require_finite

if TYPE_CHECKING:  # MindSpore is imported when an engine is built
    from gm.networks.conditioner import Conditioning
    from gm.text_model import TextToImageEngine

FLAG = "--SD."


class StableDiffusionPipeline(Pipeline, PictureOptions):
    """Stable Diffusion, text to image: the options of a picture and the model that makes it.

    Options that were left to the model get the model's values.

    Args:
        config: YAML file that defines the model.
        checkpoint: its weights: a published safetensors file (fp32 or fp16), or one that svd_tools/convert.py wrote.
        options: the fields of :class:`gm.options.PictureOptions`.

    Raises:
        UserError: a file or an option cannot be used.
    """

    group, flag = PictureOptions, FLAG

    def _set(self, options: PictureOptions) -> None:
        engine: TextToImageEngine = self.engine
        values = {item.name: getattr(options, item.name) for item in fields(PictureOptions)}
        values.update(height=options.height or engine.height, width=options.width or engine.width)
        PictureOptions(**values)  # the model's may be no size of a picture
        sampler = choose_picture_sampler(deepcopy(self._yaml_sampler), engine.align_your_steps, options)
        engine.denoiser.scaling.timestep = values["timestep"] = options.timestep or sampler.timestep
        self._take(values, sampler)

    def encode(self, prompt: str, negative_prompt: Optional[str] = None) -> Tuple[Conditioning, Conditioning]:
        """What the network is guided to, and what away from, for any number of pictures.

        Args:
            negative_prompt: None, where none is given, is not the same as an empty one for XL, which is then guided
                away from zeros.
        """
        negative = None if negative_prompt is None else Prompt(negative_prompt, self.prompt_weights)
        positive = Prompt(prompt, self.prompt_weights)
        return self.engine.condition_on_prompts(positive, negative, self.height, self.width)

    def __call__(self, guidance: Tuple[Conditioning, Conditioning], seed: int) -> np.ndarray:
        """Makes a picture.

        Args:
            guidance: from :meth:`encode`.
            seed: of all noise; the same seed gives the same picture.

        Returns:
            (height, width, 3), uint8.
        """
        rng = np.random.default_rng(seed)
        shape = (1, 1, *self.engine.latent_shape(self.height, self.width))
        return self.paint(guidance, rng.standard_normal(shape, np.float32), rng)

    def paint(
        self, guidance: Tuple[Conditioning, Conditioning], noise: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Makes a picture of given noise.

        Args:
            guidance: from :meth:`encode`.
            noise: (1, 1, z, height/8, width/8), unit Gaussian.
            rng: for samplers that add noise on the way.

        Returns:
            (height, width, 3), uint8.

        Raises:
            UserError: the latents or the pixels are not finite numbers.
        """
        cond, uncond = guidance
        latents = require_finite(self.engine.sample(cond, noise, rng, uncond), "latents", FLAG)
        return to_picture(require_finite(self.engine.decode(latents), "pixels", FLAG)[0, 0])

    @property
    def settings(self) -> Dict[str, Any]:
        """What made the pictures, for a file's metadata (:func:`gm.pipeline.common_settings`)."""
        return {**common_settings(self), "cfg": self.engine.sampler.guider.max_scale}


def to_picture(pixels: np.ndarray) -> np.ndarray:
    """(3, h, w), range -1..1, clipped -> (h, w, 3), uint8."""
    return np.rint(np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
