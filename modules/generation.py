"""From the pixels of first frames to those of clips: what sampling and validation have in common."""

from typing import TYPE_CHECKING, NamedTuple, Tuple

import numpy as np

from gm.errors import UserError
from modules.conditioning import conditioning_inputs

if TYPE_CHECKING:  # MindSpore is imported when an engine is built
    from gm.engine import DiffusionEngine


class ClipSettings(NamedTuple):
    """What a clip is conditioned on, and how it is decoded."""

    fps: float = 7
    motion_bucket_id: float = 127  # 0 to 255
    noise_aug_strength: float = 0.02
    decode_chunk_size: int = 0  # frames decoded together; 0 is all


def draw_noise(
    engine: "DiffusionEngine", pixels: np.ndarray, num_frames: int, rng: np.random.Generator
) -> Tuple[np.ndarray, np.ndarray]:
    """Unit Gaussian noise for the augmentation, of the shape of `pixels`, and for the latents, (b, t, 4, h/8, w/8)."""
    image_noise = rng.standard_normal(pixels.shape, np.float32)
    batch, _, height, width = pixels.shape
    shape = (batch, *engine.latent_shape(num_frames, height, width))
    return image_noise, rng.standard_normal(shape, np.float32)


def generate(
    engine: "DiffusionEngine",
    pixels: np.ndarray,
    noises: Tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    settings: ClipSettings,
) -> np.ndarray:
    """Animates first frames.

    Args:
        engine: the model.
        pixels: (b, 3, height, width), range -1..1.
        noises: from :func:`draw_noise`.
        rng: for samplers that add noise on the way.
        settings: of all clips of the batch.

    Returns:
        (b, t, 3, height, width), about -1..1, fp32.

    Raises:
        UserError: the latents or the frames are not finite numbers.
    """
    image_noise, noise = noises
    fps, motion_bucket_id, noise_aug_strength, decode_chunk_size = settings
    cond = engine.condition(conditioning_inputs(pixels, image_noise, fps, motion_bucket_id, noise_aug_strength))
    latents = _finite(engine.sample(cond, noise, rng), "latents")
    return _finite(engine.decode(latents, decode_chunk_size), "frames")


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(
            f"the {what} are not finite numbers: the weights or the LoRA (--SVD.checkpoint, --SVD.lora) hold NaN or "
            "infinite values, or fp16 overflowed, which --SVD.amp_level=O0 (fp32) avoids"
        )
    return values


def to_pixels(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (1, 3, h, w), fp32, range -1..1."""
    return (image.astype(np.float32) / 127.5 - 1.0).transpose(2, 0, 1)[None]


def to_frames(pixels: np.ndarray) -> np.ndarray:
    """(b, t, 3, h, w), range -1..1, clipped -> (b, t, h, w, 3), uint8."""
    unit = np.clip(pixels / 2 + 0.5, 0, 1)
    return np.rint(unit * 255).astype(np.uint8).transpose(0, 1, 3, 4, 2)
