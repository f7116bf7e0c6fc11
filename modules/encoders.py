"""The two embedders of the conditioning frame: what it shows (CLIP) and how it looks (its latent)."""

import numpy as np
from mindspore import Tensor, nn

from gm.networks.autoencoder import DOWNSAMPLING, AutoencoderKL, AutoencodingEngine
from gm.networks.conditioner import FrozenOpenCLIPImageEmbedder, GeneralConditioner


class FrozenOpenCLIPImagePredictionEmbedder(nn.Cell):
    """The CLIP embedding of the clean conditioning frame, as one token of the cross-attention.

    Args:
        open_clip_embedding: the picture's embedder.
        input_key: the frame's name in the batch.
    """

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


class VideoPredictionEmbedderWithEncoder(nn.Cell):
    """The latent of the noised conditioning frame, not multiplied by the scale factor.

    Args:
        encoder: an autoencoder; the mode of its posterior is taken.
        input_key: the frame's name in the batch.

    Attributes:
        downsampling: pixels of the frame to one of the latent; frames may come in tiles.
    """

    downsampling = DOWNSAMPLING

    def __init__(self, encoder: AutoencodingEngine, input_key: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.input_key = input_key

    def construct(self, x: Tensor) -> Tensor:
        """(b, 3, H, W), range -1..1 -> (b, 4, H/8, W/8), to be concatenated to the UNet's input."""
        return self.encoder.encode(x)


def image_autoencoder(conditioner: GeneralConditioner) -> AutoencoderKL:
    """The autoencoder among the embedders."""
    return next(embedder.encoder for embedder in conditioner.embedders if hasattr(embedder, "encoder"))


def in_image_autoencoder(name: str) -> bool:
    """Whether a parameter of the conditioner belongs to its autoencoder."""
    return ".encoder." in name and ".open_clip." not in name
