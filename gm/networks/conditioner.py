"""The embedders, and all of them together: a batch of named inputs to the UNet's three kinds of conditioning."""

from functools import partial
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mindspore import Tensor, nn

from gm.networks.clip import OpenCLIP
from gm.networks.layers import sinusoidal_embedding
from gm.networks.resize import resize
from gm.networks.tiling import in_tiles

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Conditioning(NamedTuple):
    """What the UNet is conditioned on (host arrays, fp32)."""

    vector: Optional[np.ndarray]  # (b, 768): embedded numbers, such as fps_id, motion_bucket_id and cond_aug
    crossattn: np.ndarray  # (b, n, 1024): CLIP tokens
    concat: Optional[np.ndarray]  # (b, 4, h, w): latent of the conditioning image

    def beside(self, x: np.ndarray) -> np.ndarray:
        """Noisy latents, each with the image's latent behind its channels: what the UNet sees, sampling and training.

        Args:
            x: (b, t, c, h, w), multiplied by c_in.

        Returns:
            (b·t, c + 4, h, w), or (b·t, c, h, w) where there is no image.
        """
        b, t, c, h, w = x.shape
        if self.concat is None:
            return x.reshape(b * t, c, h, w)
        image = np.broadcast_to(self.concat[:, None], (b, t, *self.concat.shape[1:]))
        return np.concatenate([x, image], axis=2).reshape(b * t, -1, h, w)  # b t c h w -> (b t) c h w

    def without(self, token: np.ndarray, latent: np.ndarray) -> "Conditioning":
        """Zeros for the CLIP tokens and for the latents of the chosen samples, both (b,); the vector stays."""
        return Conditioning(
            self.vector,
            np.where(token[:, None, None], np.float32(0), self.crossattn),
            np.where(latent[:, None, None, None], np.float32(0), self.concat),
        )

    def unconditional(self) -> "Conditioning":
        """Without the image: its token and its latent are zero, the vector stays."""
        every = np.ones(len(self.vector), bool)
        return self.without(every, every)

    def joined(self, other: "Conditioning") -> "Conditioning":
        """The samples of both. Tokens are repeated to the same number, which leaves attention over them as it is."""
        count = np.lcm(self.crossattn.shape[1], other.crossattn.shape[1])
        tokens = [np.tile(one.crossattn, (1, count // one.crossattn.shape[1], 1)) for one in (self, other)]
        pairs = zip(self._replace(crossattn=tokens[0]), other._replace(crossattn=tokens[1]))
        return Conditioning(*(None if first is None else np.concatenate([first, second]) for first, second in pairs))


class Embedder(nn.Cell):
    """Turns one named input into a part of the conditioning.

    Attributes:
        input_key: the input's name in a batch.
        output: the field of :class:`Conditioning` that its result belongs to.
        downsampling: pixels of the input to one of the result's; 0 where it is not an image's or cannot be tiled.
    """

    input_key: str
    output: str
    downsampling = 0

    def prepare(self, value: np.ndarray) -> np.ndarray:
        """From a batch's array, (b,) or (b, k) numbers or (b, 3, H, W) pixels, -1..1, to the network's input, fp32."""
        return value.astype(np.float32)

    def embed(self, value: Any, tile_size: int = 0) -> Dict[str, np.ndarray]:
        """A batch's input as parts of the conditioning, by kind; see :meth:`GeneralConditioner.embed`."""
        prepared, unit = self.prepare(value), self.downsampling
        embed = partial(_on_host, self)
        return {self.output: in_tiles(embed, prepared, tile_size // unit, (unit, 1)) if unit else embed(prepared)}


class ConcatTimestepEmbedderND(Embedder):
    """A sinusoidal embedding of one number, or of several.

    Args:
        outdim: width of each number's embedding (256).
        input_key: the name: fps_id, motion_bucket_id, cond_aug, or XL's original_size_as_tuple,
            crop_coords_top_left, target_size_as_tuple.
    """

    output = "vector"

    def __init__(self, outdim: int, input_key: str) -> None:
        super().__init__()
        self.outdim, self.input_key = outdim, input_key

    def construct(self, x: Tensor) -> Tensor:
        """(b,) or (b, k) -> (b, k·outdim), to be concatenated into the vector."""
        return sinusoidal_embedding(x.reshape(-1), self.outdim).reshape(x.shape[0], -1)


class FrozenOpenCLIPImageEmbedder(nn.Cell):
    """The CLIP embedding of an image.

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
        """Pixels to what the network takes: resized, and normalised by CLIP's mean and deviation.

        Args:
            pixels: (b, 3, H, W), range -1..1; or uint8 in the network's size, which has been resized as another tool
                does it.
        """
        size = self.model.visual.image_size
        if pixels.dtype == np.uint8:
            unit = pixels / np.float32(255)
        else:
            unit = (resize(pixels.astype(np.float32), size, size) + 1.0) / 2.0
        return ((unit - _per_channel(CLIP_MEAN)) / _per_channel(CLIP_STD)).astype(np.float32)


class GeneralConditioner(nn.Cell):
    """Runs every embedder on its input and concatenates the results by kind.

    Args:
        embedders: each an :class:`Embedder`, in the published order; vectors are concatenated in it.
    """

    def __init__(self, embedders: Sequence[nn.Cell]) -> None:
        super().__init__()
        if not embedders or not all(isinstance(embedder, Embedder) for embedder in embedders):
            raise ValueError("it needs embedders, one or more, and nothing else")
        self.embedders = nn.CellList(embedders)

    def embed(self, batch: Mapping[str, Any], tile_size: int = 0) -> Dict[str, np.ndarray]:
        """The conditioning of each kind that the batch has inputs for, from host arrays to host arrays.

        Args:
            batch: `input_key` -> numbers (b,) or (b, k), pixels (b, 3, H, W), range -1..1, or what the embedder itself
                says; embedders without an input rest.
            tile_size: pixels that the autoencoder takes at once, up and across (:mod:`gm.networks.tiling`); 0 for any.
        """
        parts: Dict[str, List[np.ndarray]] = {}
        for embedder in self.embedders:
            if embedder.input_key not in batch:
                continue
            for kind, part in embedder.embed(batch[embedder.input_key], tile_size).items():
                parts.setdefault(kind, []).append(part)
        axes = {"vector": 1, "crossattn": 2, "concat": 1}  # of what embedders give beside each other
        return {kind: np.concatenate(values, axes[kind]) for kind, values in parts.items()}

    def condition(self, batch: Mapping[str, Any], tile_size: int = 0) -> Conditioning:
        """All kinds; see :meth:`embed`. Raises a KeyError if an embedder's input is missing."""
        missing = {embedder.input_key for embedder in self.embedders} - set(batch)
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        return Conditioning(**{"vector": None, "concat": None, **self.embed(batch, tile_size)})


class CondStageModel(GeneralConditioner):
    """One embedder whose parameters have its own names: `cond_stage_model` of Stable Diffusion 1 and 2.

    Args:
        embedder: an :class:`Embedder`.
    """

    def __init__(self, embedder: Embedder) -> None:
        super(GeneralConditioner, self).__init__()
        self.embedders = (embedder,)
        for name, cell in embedder.name_cells().items():
            self.insert_child_to_cell(name, cell)


def _on_host(embedder: nn.Cell, value: np.ndarray) -> np.ndarray:
    return embedder(Tensor(value)).asnumpy().astype(np.float32)


def _per_channel(values: Tuple[float, float, float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 3, 1, 1)
