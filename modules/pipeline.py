"""Image to video: from an image to frames, with every setting of the command line."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Dict, Optional

import numpy as np

from gm.pipeline import Pipeline, common_settings, require_finite, word_of
from gm.sampling.noise import GENERATORS
from gm.sampling.schedules import SCHEDULES
from gm.weights.parameters import NUMPY_TYPE
from modules.compatibility import RESIZES, TOOLS, Noises
from modules.conditioning import conditioning_inputs
from modules.options import TRAINED_FPS, ClipOptions, VideoOptions, choose_sampler
from modules.video_guidance import GUIDERS

if TYPE_CHECKING:  # MindSpore is imported when an engine is built
    from modules.video_model import VideoDiffusionEngine

FLAG = "--SVD."

logger = logging.getLogger(__name__)


class SVDPipeline(Pipeline, VideoOptions):
    """Stable Video Diffusion, image to video: the options of a video and the model that makes it.

    Options that were left to the model get the model's values.

    Args:
        config: YAML file that defines the model.
        checkpoint: its weights: a published svd*.safetensors (fp32 or fp16), the reference toolkit's .ckpt, or a file
            that train.py or svd_tools/convert.py wrote.
        options: the fields of :class:`modules.options.VideoOptions`.

    Raises:
        UserError: a file or an option cannot be used.
    """

    group, flag = VideoOptions, FLAG

    def _set(self, options: VideoOptions) -> None:
        values = {item.name: getattr(options, item.name) for item in fields(VideoOptions)}
        for name in ("num_frames", "height", "width"):
            if values[name] is None:
                values[name] = getattr(self.engine, name)
        VideoOptions(**values)  # the model's may be no size of a video
        self._take(values, choose_sampler(deepcopy(self._yaml_sampler), options))
        if not TRAINED_FPS[0] <= self.fps <= TRAINED_FPS[1]:
            logger.warning("%sfps=%d is outside the range %d to %d of the training", FLAG, self.fps, *TRAINED_FPS)
        TOOLS[self.like].warn(self)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Animates an image.

        Args:
            image: (h, w, 3) uint8 RGB of any size; resized and cropped to the video's.
            seed: of all noise; the same seed gives the same frames.

        Returns:
            (t, height, width, 3), uint8.
        """
        tool = TOOLS[self.like]
        rng = GENERATORS[self.noise or tool.noise](seed)
        pixels = RESIZES[self.resize or tool.resize](image, self.height, self.width, tuple(self.crop_offset))
        clip_image = tool.clip_image(image, pixels, self.engine.clip_image_size)
        shape = (1, *self.engine.clip_shape(self.num_frames, self.height, self.width))
        noises = tool.draw(rng, pixels.shape, shape, NUMPY_TYPE[self.engine.network.dtype])
        return self.animate(pixels, *noises, rng, clip_image)[0]

    def animate(
        self,
        pixels: np.ndarray,
        image_noise: np.ndarray,
        noise: np.ndarray,
        rng: Any,
        clip_image: Optional[np.ndarray] = None,
    ) -> np.ndarray:
        """Animates first frames from given noise; for the arguments see :func:`generate`.

        Returns:
            (b, t, height, width, 3), uint8.
        """
        decoded = generate(self.engine, pixels, (image_noise, noise), rng, self, clip_image)
        return TOOLS[self.like].to_frames(decoded)

    @property
    def settings(self) -> Dict[str, Any]:
        """What made the frames, for a file's metadata (:func:`gm.pipeline.common_settings`)."""
        sampler, guider, tool = self.engine.sampler, self.engine.sampler.guider, TOOLS[self.like]
        return {
            **common_settings(self),
            "crop_offset": list(self.crop_offset),
            "noise": self.noise or tool.noise,
            "resize": self.resize or tool.resize,
            "schedule": word_of(sampler.discretization, SCHEDULES),
            "guider": word_of(guider, GUIDERS),
            "min_cfg": guider.min_scale,
            "max_cfg": guider.max_scale,
        }


def generate(
    engine: VideoDiffusionEngine,
    pixels: np.ndarray,
    noises: Noises,
    rng: Any,
    options: ClipOptions,
    clip_image: Optional[np.ndarray] = None,
) -> np.ndarray:
    """Animates first frames.

    Args:
        engine: the model.
        pixels: (b, 3, height, width), range -1..1.
        noises: unit Gaussian, of the shape of `pixels`, and (b, t, c, h, w).
        rng: for samplers that add noise on the way; one of :data:`gm.sampling.noise.GENERATORS`.
        options: of all clips of the batch.
        clip_image: what CLIP sees in place of `pixels`.

    Returns:
        (b, t, 3, height, width), about -1..1, fp32.

    Raises:
        UserError: the latents or the frames are not finite numbers.
    """
    image_noise, noise = noises
    (cond,) = engine.condition(conditioning_inputs(pixels, image_noise, clip_image=clip_image, **options.numbers()))
    latents = require_finite(engine.sample(cond, noise, rng), "latents", FLAG)
    return require_finite(engine.decode(latents, options.decode_chunk_size), "frames", FLAG)
