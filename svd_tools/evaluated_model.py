"""A model as the evaluation sees it: pictures and clips in, pictures and clips out."""

from contextlib import contextmanager
from typing import Iterator, List, NamedTuple

import numpy as np
from mindspore import Tensor

from data.image_reader import fit_image
from gm.backend.operators import inference
from gm.model import DiffusionEngine
from modules.conditioning import image_autoencoder, in_image_autoencoder
from modules.pipeline import SVDPipeline, to_frames, to_pixels


class Clip(NamedTuple):
    """A generated clip and what it was decoded from."""

    frames: np.ndarray  # (t, h, w, 3) uint8
    latents: np.ndarray  # (t, 4, h/8, w/8) fp32, multiplied by the scale factor


class EvaluatedModel:
    """A pipeline and, beside it, the image autoencoder inside its conditioner, with its decoder.

    Args:
        pipeline: with its weights.
    """

    def __init__(self, pipeline: SVDPipeline) -> None:
        self.pipeline, self.engine = pipeline, pipeline.engine
        self.image_autoencoder = self.engine.conditioner.subset("image autoencoder", in_image_autoencoder)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """A picture of any size as the model sees it: (height, width, 3) uint8."""
        return fit_image(image, self.pipeline.height, self.pipeline.width, self.pipeline.crop_offset)

    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        """Encodes a fitted picture (mode of the posterior) and decodes it as a still clip of the model's length.

        Returns:
            (t, height, width, 3) uint8.
        """
        with self.image_autoencoder as conditioner, inference():
            latent = image_autoencoder(conditioner).encode(Tensor(to_pixels(image))).asnumpy()
        latents = np.repeat(latent, self.pipeline.num_frames, axis=0) * np.float32(self.engine.scale_factor)
        return to_frames(self.engine.decode(latents[None]))[0]

    def generate(self, image: np.ndarray, motion_bucket_id: int, seed: int) -> Clip:
        """Animates a fitted picture."""
        self.pipeline.motion_bucket_id = motion_bucket_id
        with _kept_latents(self.engine) as kept:
            frames = self.pipeline(image, seed)
        return Clip(frames, kept[0][0])

    def decode_one_by_one(self, latents: np.ndarray) -> np.ndarray:
        """Decodes each frame for itself with the image decoder.

        Args:
            latents: (t, 4, h, w), multiplied by the scale factor.

        Returns:
            (t, 8h, 8w, 3) uint8.
        """
        with self.image_autoencoder as conditioner, inference():
            autoencoder = image_autoencoder(conditioner)
            scaled = latents / np.float32(self.engine.scale_factor)
            frames = [autoencoder.decode(Tensor(latent[None])).asnumpy()[0] for latent in scaled]
        return to_frames(np.stack(frames)[None])[0]


@contextmanager
def _kept_latents(engine: DiffusionEngine) -> Iterator[List[np.ndarray]]:
    """Keeps the latents that the engine decodes inside the block: each (b, t, 4, h, w)."""
    kept: List[np.ndarray] = []
    decode = engine.decode

    def keep_and_decode(latents: np.ndarray, *args, **kwargs) -> np.ndarray:
        kept.append(latents)
        return decode(latents, *args, **kwargs)

    engine.decode = keep_and_decode
    try:
        yield kept
    finally:
        del engine.decode
