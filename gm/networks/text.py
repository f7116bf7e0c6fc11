"""What a prompt becomes: the text towers' tokens for the cross-attention, and a vector of the whole text."""

from typing import Dict, Literal, Optional, Tuple

import numpy as np
from mindspore import Tensor

from gm.networks.clip import OpenCLIPText
from gm.networks.clip_text_model import CLIPTextModel
from gm.networks.conditioner import Embedder
from gm.networks.prompt import COMFYUI, Prompt, Rule, token_blocks
from gm.networks.tokenizer import END, TEXT_CONTEXT

TEXT = "txt"  # input key of the published models


class TextEmbedder(Embedder):
    """A text tower; subclasses say which of its results are taken.

    Attributes:
        pad: the token that fills a block.
        widths: of what :meth:`construct` gives, by kind.
    """

    input_key, output = TEXT, "crossattn"
    pad = 0
    widths: Dict[str, int]

    def embed(self, prompt: Optional[Prompt], tile_size: int = 0) -> Dict[str, np.ndarray]:
        """The conditioning of one prompt, (1, 77·blocks, c) and (1, c'); zeros for none.

        A weighted token's result is moved from, or multiplied by, as the prompt's rule says; the vector has no weights
        and is the first block's.
        """
        if prompt is None:
            shapes = {"crossattn": (1, TEXT_CONTEXT), "vector": (1,)}
            return {kind: np.zeros((*shapes[kind], width), np.float32) for kind, width in self.widths.items()}
        tokens, weights = token_blocks(prompt, self.pad)
        count, empty = len(tokens), token_blocks(Prompt(""), self.pad)[0]
        tokens = np.concatenate([tokens, empty]) if np.any(weights != 1) else tokens
        ends = np.argmax(tokens == END, axis=1).astype(np.int32)
        results = (part.asnumpy().astype(np.float32) for part in self(Tensor(tokens), Tensor(ends)))
        parts = dict(zip(self.widths, results))
        if len(tokens) > count:
            parts["crossattn"] = _weighted(parts["crossattn"], weights[..., None], prompt.rule)
        parts["crossattn"] = parts["crossattn"].reshape(1, -1, self.widths["crossattn"])  # n 77 c -> 1 (n 77) c
        return {kind: part[:1] for kind, part in parts.items()}


def _weighted(hidden: np.ndarray, weights: np.ndarray, rule: Rule) -> np.ndarray:
    """Each token's result by its weight: (n + 1, 77, c), the empty prompt's last, and (n, 77, 1) -> (n, 77, c)."""
    hidden, empty = hidden[:-1], hidden[-1]
    if rule == COMFYUI:
        return empty + weights * (hidden - empty)
    scaled = hidden * weights
    return scaled * (hidden.mean((1, 2), keepdims=True) / scaled.mean((1, 2), keepdims=True))


class FrozenCLIPEmbedder(TextEmbedder):
    """OpenAI's CLIP ViT-L/14.

    Args:
        transformer: the tower.
        layer: `last` takes the last block's result, normalised (Stable Diffusion 1.5), `penultimate` the one before's
            (XL).
    """

    pad = END

    def __init__(self, transformer: CLIPTextModel, layer: Literal["last", "penultimate"] = "last") -> None:
        super().__init__()
        self.transformer, self.layer = transformer, layer
        self.widths = {"crossattn": transformer.width}

    def construct(self, tokens: Tensor, ends: Tensor) -> Tuple[Tensor]:
        """(n, 77), (n,) -> (n, 77, c)."""
        penultimate, last = self.transformer(tokens)
        return (self.transformer.text_model.final_layer_norm(last) if self.layer == "last" else penultimate,)


class FrozenOpenCLIPEmbedder(TextEmbedder):
    """OpenCLIP's ViT-H/14: the penultimate block's result, normalised (Stable Diffusion 2)."""

    def __init__(self, model: OpenCLIPText) -> None:
        super().__init__()
        self.model = model
        self.widths = {"crossattn": model.width}

    def construct(self, tokens: Tensor, ends: Tensor) -> Tuple[Tensor]:
        """(n, 77), (n,) -> (n, 77, c)."""
        return (self.model.ln_final(self.model(tokens)[0]),)


class FrozenOpenCLIPEmbedder2(TextEmbedder):
    """OpenCLIP's ViT-bigG/14: the penultimate block's result as it is, and the embedding of the text (XL)."""

    def __init__(self, model: OpenCLIPText) -> None:
        super().__init__()
        self.model = model
        self.widths = {"crossattn": model.width, "vector": model.text_projection.shape[1]}

    def construct(self, tokens: Tensor, ends: Tensor) -> Tuple[Tensor, Tensor]:
        """(n, 77), (n,) -> (n, 77, c), (n, c')."""
        penultimate, last = self.model(tokens)
        return penultimate, self.model.pooled(last, ends)
