"""What a video is conditioned on: its first frame, as CLIP and the autoencoder see it, and three numbers.

Sampling, training and the latent cache all make the embedders' inputs by :func:`conditioning_inputs`.
"""

from typing import Dict, Optional, Union

import numpy as np
from mindspore import Tensor

from gm.networks.autoencoder import DOWNSAMPLING, AutoencoderKL, AutoencodingEngine
from gm.networks.conditioner import Embedder, FrozenOpenCLIPImageEmbedder, GeneralConditioner

CLEAN_FRAME, NOISED_FRAME = "cond_frames_without_noise", "cond_frames"  # input keys of the published model
Numbers = Union[float, np.ndarray]  # one for all clips, or (b,)


class FrozenOpenCLIPImagePredictionEmbedder(Embedder):
    """The CLIP embedding of the clean conditioning frame, as one token of the cross-attention.

    Args:
        open_clip_embedding: the image's embedder.
        input_key: the frame's name in the batch.
    """

    output = "crossattn"

    def __init__(self, open_clip_embedding: FrozenOpenCLIPImageEmbedder, input_key: str) -> None:
        super().__init__()
        self.open_clip = open_clip_embedding
        self.input_key = input_key

    def construct(self, x: Tensor) -> Tensor:
        """x: from :meth:`prepare` -> (b, 1, 1024)."""
        return self.open_clip(x).expand_dims(1)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """(b, 3, H, W), range -1..1 -> (b, 3, 224, 224), normalised."""
        return self.open_clip.prepare(pixels)


class VideoPredictionEmbedderWithEncoder(Embedder):
    """The latent of the noised conditioning frame, not multiplied by the scale factor.

    Args:
        encoder: an autoencoder; the mode of its posterior is taken.
        input_key: the frame's name in the batch.
    """

    output, downsampling = "concat", DOWNSAMPLING

    def __init__(self, encoder: AutoencodingEngine, input_key: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.input_key = input_key

    def construct(self, x: Tensor) -> Tensor:
        """(b, 3, H, W), range -1..1 -> (b, 4, H/8, W/8), to be concatenated to the UNet's input."""
        return self.encoder.encode(x)


def conditioning_inputs(
    pixels: np.ndarray,
    image_noise: np.ndarray,
    fps: Numbers,
    motion_bucket_id: Numbers,
    noise_aug_strength: Numbers,
    clip_image: Optional[np.ndarray] = None,
    **others: Numbers,
) -> Dict[str, np.ndarray]:
    """The embedders' inputs by their `input_key`, for a batch of first frames.

    Args:
        pixels: (b, 3, height, width), range -1..1.
        image_noise: of the same shape, unit Gaussian.
        fps: frames per second; the model is conditioned on one less, as `fps_id`.
        motion_bucket_id: 0 to 255.
        noise_aug_strength: the noise's standard deviation in the frame that the autoencoder sees; CLIP sees it clean.
        clip_image: what CLIP sees in place of the clean frame (:meth:`modules.compatibility.Sgm.clip_image`).
        others: what a model is conditioned on besides, by its embedder's `input_key`.
    """
    ones = np.ones(len(pixels), np.float32)
    cond_aug = ones * np.float32(noise_aug_strength)
    return {
        CLEAN_FRAME: pixels if clip_image is None else clip_image,
        NOISED_FRAME: pixels + cond_aug.reshape(-1, 1, 1, 1) * image_noise,
        "fps_id": (ones * (np.asarray(fps, np.float64) - 1)).astype(np.float32),
        "motion_bucket_id": ones * np.float32(motion_bucket_id),
        "cond_aug": cond_aug,
        **{name: ones * np.float32(value) for name, value in others.items()},
    }


def encode_frames(conditioner: GeneralConditioner, frames: np.ndarray, chunk_size: int) -> np.ndarray:
    """The modes of the frames' posteriors.

    Args:
        frames: (n, 3, H, W), range -1..1.
        chunk_size: frames that the autoencoder encodes together.

    Returns:
        (n, 4, H/8, W/8), fp32, not multiplied by the scale factor.
    """
    chunks = [frames[start : start + chunk_size] for start in range(0, len(frames), chunk_size)]
    return np.concatenate([conditioner.embed({NOISED_FRAME: chunk})["concat"] for chunk in chunks])


def image_autoencoder(conditioner: GeneralConditioner) -> AutoencoderKL:
    """The autoencoder among the embedders."""
    return next(embedder.encoder for embedder in conditioner.embedders if embedder.output == "concat")


def in_image_autoencoder(name: str) -> bool:
    """Whether a parameter of the conditioner belongs to its autoencoder."""
    return ".encoder." in name and ".open_clip." not in name
