"""All embedders together: a batch of named inputs to the UNet's three kinds of conditioning."""

from functools import partial
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mindspore import Tensor, nn

from gm.networks.clip import OpenCLIP
from gm.networks.layers import sinusoidal_embedding
from gm.networks.resize import resize
from gm.networks.tiling import in_tiles


class Conditioning(NamedTuple):
    """What the UNet is conditioned on (host arrays, fp32)."""

    vector: np.ndarray  # (b, 768): fps_id, motion_bucket_id, cond_aug
    crossattn: np.ndarray  # (b, n, 1024): CLIP tokens
    concat: np.ndarray  # (b, 4, h, w): latent of the conditioning frame

    def unconditional(self) -> "Conditioning":
        """Without the image: its token and its latent are zero, the vector stays."""
        return Conditioning(self.vector, np.zeros_like(self.crossattn), np.zeros_like(self.concat))


KIND_OF_NDIM = {2: "vector", 3: "crossattn", 4: "concat"}


class GeneralConditioner(nn.Cell):
    """Runs every embedder on its input and concatenates the results by kind.

    Args:
        embedders: in the published order; vectors are concatenated in it.
    """

    def __init__(self, embedders: Sequence[nn.Cell]) -> None:
        super().__init__()
        self.embedders = nn.CellList(embedders)

    @property
    def input_keys(self) -> List[str]:
        return [embedder.input_key for embedder in self.embedders]

    def embed(
        self, batch: Dict[str, np.ndarray], skip: Optional[Sequence[str]] = None, tile_size: int = 0
    ) -> Dict[str, np.ndarray]:
        """The conditioning of each kind, from host arrays to host arrays.

        Args:
            batch: `input_key` -> numbers (b,) or pixels (b, 3, H, W), range -1..1.
            skip: input keys not to embed (whose results are cached).
            tile_size: pixels that the autoencoder takes at once, up and across (:mod:`gm.networks.tiling`); 0 for any.

        Raises:
            KeyError: an embedder's input is missing.
        """
        parts: Dict[str, List[np.ndarray]] = {}
        for embedder in self.embedders:
            if skip and embedder.input_key in skip:
                continue
            value = batch[embedder.input_key].astype(np.float32)
            prepare = getattr(embedder, "prepare", None)
            value = prepare(value) if prepare else value
            if hasattr(embedder, "downsampling"):
                unit = embedder.downsampling
                out = in_tiles(partial(_on_host, embedder), value, tile_size // unit, (unit, 1))
            else:
                out = _on_host(embedder, value)
            parts.setdefault(KIND_OF_NDIM[out.ndim], []).append(out)
        return {kind: np.concatenate(values, axis=1) for kind, values in parts.items()}

    def condition(self, batch: Dict[str, np.ndarray], tile_size: int = 0) -> Conditioning:
        """All three kinds; see :meth:`embed`."""
        return Conditioning(**self.embed(batch, tile_size=tile_size))


def _on_host(embedder: nn.Cell, value: np.ndarray) -> np.ndarray:
    return embedder(Tensor(value)).asnumpy().astype(np.float32)

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
