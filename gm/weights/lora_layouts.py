"""The layers of LoRA files as programs write them: this toolkit and ComfyUI, diffusers and PEFT, kohya's scripts.

This toolkit and ComfyUI put `diffusion_model.` before a layer's published name; diffusers and PEFT `unet.`,
`text_encoder.` or `base_model.model.` before the diffusers name; kohya's scripts `lora_unet_` or `lora_te_` before
either name with underscores; diffusers of 2023 has `….processor.to_q_lora.down.weight`.
"""

import re
from typing import Dict, Iterator, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from gm.weights.diffusers_names import (
    AS_IS,
    OPEN_CLIP_2_PREFIX,
    SD_TEXT_PREFIX,
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    UNET,
    UNET_PREFIX,
    XL_TEXT_2_PREFIX,
    XL_TEXT_PREFIX,
    Place,
    diffusers_places,
)

WEIGHT = ".weight"
ADAPTED = (UNET_PREFIX, SD_TEXT_PREFIX, OPEN_CLIP_2_PREFIX, XL_TEXT_PREFIX, XL_TEXT_2_PREFIX)
TOOLKIT_PREFIXES = ("diffusion_model.", UNET_PREFIX)
DIFFUSERS_PREFIXES = {
    UNET: ("unet.", "", "base_model.model.", "unet.base_model.model."),
    TEXT_ENCODER: ("text_encoder.",),
    TEXT_ENCODER_2: ("text_encoder_2.",),
}
KOHYA_PREFIXES = {UNET: ("lora_unet_",), TEXT_ENCODER: ("lora_te_", "lora_te1_"), TEXT_ENCODER_2: ("lora_te2_",)}
DOWN, UP, SCALE = "A", "B", "alpha"  # parts of a layer

_ENDS = re.compile(
    r"^(?P<layer>.+?)(?:\.|_)(?:lora_(?P<ab>[AB])(?:\.\w+)?\.weight|"
    r"lora(?:_linear_layer)?[._](?P<way>down|up)\.weight|(?P<alpha>alpha))$"
)
_PARTS = {"down": DOWN, "up": UP}


class Entry(NamedTuple):
    """What a tensor of a LoRA file is."""

    layer: str  # as the file names it
    part: str  # A, B or SCALE


class Layer(NamedTuple):
    """A layer of the network that a LoRA may adapt."""

    name: str  # published, without `.weight`
    part: int = 0  # which of the equal parts of its rows: OpenCLIP has q, k and v in one matrix
    parts: int = 1


def parse_name(name: str) -> Optional[Entry]:
    """The layer and the part that a tensor's name tells, or None if it is no LoRA's."""
    match = _ENDS.match(name)
    if match is None:
        return None
    part = match["ab"] or _PARTS.get(match["way"]) or SCALE
    layer = match["layer"].replace(".processor.", ".")
    return Entry(f"{layer}.0" if layer.endswith(".to_out") else layer, part)


def known_layers(wanted: Mapping[str, Tuple[int, ...]]) -> Dict[str, Layer]:
    """Every name that a layer of the UNet or of a text encoder goes by.

    Args:
        wanted: the network's parameters, published name → shape.
    """
    names: Dict[str, Layer] = {}
    for published, place in adapted_places(wanted).items():
        for index, other in enumerate(place.names):
            layer = Layer(layer_of(published), index, len(place.names))
            names.update(dict.fromkeys(_spellings(published, place.component, other), layer))
    return names


def adapted_places(wanted: Mapping[str, Tuple[int, ...]]) -> Dict[str, Place]:
    """Published name → its place in the diffusers layout, for every matrix and kernel that a LoRA may adapt."""
    own = [name for name in wanted if name.startswith(ADAPTED)]
    places = diffusers_places(own)
    return {name: place for name, place in places.items() if place.layout == AS_IS and len(wanted[name]) in (2, 4)}


def layer_of(tensor: str) -> str:
    """The layer whose weight a tensor is."""
    return tensor[: -len(WEIGHT)] if tensor.endswith(WEIGHT) else tensor


def weight_of(layer: str) -> str:
    """The tensor that is a layer's weight: OpenCLIP's `in_proj_weight` is both."""
    return layer if layer.endswith("in_proj_weight") else layer + WEIGHT


def _spellings(published: str, component: str, other: str) -> Iterator[str]:
    names = [layer_of(other)]
    if component == UNET:
        names.append(layer_of(published[len(UNET_PREFIX) :]))
        yield from (prefix + names[1] for prefix in TOOLKIT_PREFIXES)
    yield from (prefix + names[0] for prefix in DIFFUSERS_PREFIXES[component])
    yield from (prefix + name.replace(".", "_") for prefix in KOHYA_PREFIXES[component] for name in names)


def stacked(parts: Mapping[int, Tuple[np.ndarray, np.ndarray]], count: int) -> Tuple[np.ndarray, np.ndarray]:
    """One branch for a matrix whose rows are `count` equal parts, from the branches of some of them.

    Args:
        parts: number of the part → its A (r, in) and its B (out, r), α/r multiplied into B.

    Returns:
        A (Σr, in) and B (count·out, Σr), of which each part's B fills its own rows and columns.
    """
    rows = len(next(iter(parts.values()))[1])
    ranks = [len(a) for a, _ in parts.values()]
    b, column = np.zeros((count * rows, sum(ranks)), np.float32), 0
    for part, (_, own) in parts.items():
        b[part * rows : (part + 1) * rows, column : column + own.shape[1]] = own
        column += own.shape[1]
    return np.concatenate([a for a, _ in parts.values()]), b
