"""The names that other programs give to the layers of a LoRA, and the published layers they mean.

Known are: this toolkit's and ComfyUI's (`diffusion_model.` and the published name), diffusers' and PEFT's (`unet.` or
`base_model.model.` and the diffusers name), kohya's (`lora_unet_` and either name with underscores), and diffusers' of
2023 (`….processor.to_q_lora.down.weight`).
"""

import re
from typing import Dict, Mapping, NamedTuple, Optional, Tuple

from svd_tools.conversion.key_map import UNET_PREFIX, diffusers_places

WEIGHT = ".weight"
TOOLKIT_PREFIXES = ("diffusion_model.", UNET_PREFIX)
DIFFUSERS_PREFIXES = ("unet.", "", "base_model.model.", "unet.base_model.model.")
KOHYA_PREFIX = "lora_unet_"
A, B, ALPHA = "A", "B", "alpha"

_ENDS = re.compile(
    r"^(?P<layer>.+?)(?:\.|_)(?:lora_(?P<ab>[AB])(?:\.\w+)?\.weight|lora[._](?P<way>down|up)\.weight|(?P<alpha>alpha))$"
)
_PARTS = {"down": A, "up": B}


class Entry(NamedTuple):
    """What a tensor of a LoRA file is."""

    layer: str  # as the file names it
    part: str  # A, B or ALPHA


def parse_name(name: str) -> Optional[Entry]:
    """The layer and the part that a tensor's name tells, or None if it is no LoRA's."""
    match = _ENDS.match(name)
    if match is None:
        return None
    part = match["ab"] or _PARTS.get(match["way"]) or ALPHA
    layer = match["layer"].replace(".processor.", ".")
    return Entry(f"{layer}.0" if layer.endswith(".to_out") else layer, part)


def known_layers(wanted: Mapping[str, Tuple[int, ...]]) -> Dict[str, str]:
    """Every name that a linear layer of the UNet goes by → its published name, without `.weight`.

    Args:
        wanted: the network's parameters, published name → shape.
    """
    names: Dict[str, str] = {}
    for published, diffusers in diffusers_layers(wanted).items():
        bare = published[len(UNET_PREFIX) :]
        spellings = [prefix + bare for prefix in TOOLKIT_PREFIXES]
        spellings += [prefix + diffusers for prefix in DIFFUSERS_PREFIXES]
        spellings += [KOHYA_PREFIX + name.replace(".", "_") for name in (bare, diffusers)]
        names.update(dict.fromkeys(spellings, published))
    return names


def diffusers_layers(wanted: Mapping[str, Tuple[int, ...]]) -> Dict[str, str]:
    """Published name → diffusers name of every linear layer of the UNet, both without `.weight`."""
    places = diffusers_places(wanted)
    linear = [
        name
        for name, shape in wanted.items()
        if name.startswith(UNET_PREFIX) and name.endswith(WEIGHT) and len(shape) == 2
    ]
    return {name[: -len(WEIGHT)]: places[name].names[0][: -len(WEIGHT)] for name in linear}
