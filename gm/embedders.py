"""Embedders that are not particular to video: of a number, and of a picture by CLIP."""

from typing import Tuple

import numpy as np
from mindspore import Tensor, nn

from gm.clip import OpenCLIP
from gm.layers import sinusoidal_embedding
from gm.resize import resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ConcatTimestepEmbedderND(nn.Cell):
    """A sinusoidal embedding of one number.

    Args:
        outdim: width of the embedding (256).
        input_key: the number's name: fps_id, motion_bucket_id or cond_aug.
    """

    def __init__(self, outdim: int, input_key: str) -> None:
        super().__init__()
        self.outdim, self.input_key = outdim, input_key

    def construct(self, x: Tensor) -> Tensor:
        """(b,) -> (b, outdim), to be concatenated into the vector."""
        return sinusoidal_embedding(x, self.outdim)


class FrozenOpenCLIPImageEmbedder(nn.Cell):
    """The CLIP embedding of a picture.

    Args:
        model: the network.
    """

    def __init__(self, model: OpenCLIP) -> None:
        super().__init__()
        self.model = model

    def construct(self, x: Tensor) -> Tensor:
        """(b, 3, 224, 224), normalised -> (b, 1024)."""
        return self.model(x)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """(b, 3, H, W), range -1..1 -> what the network takes: resized, normalised by CLIP's mean and deviation."""
        size = self.model.visual.image_size
        unit = (resize(pixels, size, size) + 1.0) / 2.0
        return ((unit - _per_channel(CLIP_MEAN)) / _per_channel(CLIP_STD)).astype(np.float32)


def _per_channel(values: Tuple[float, float, float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 3, 1, 1)
