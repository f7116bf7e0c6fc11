"""diffusers' networks with the weights of a published file, memory-mapped."""

from pathlib import Path

import torch
from diffusers import UNetSpatioTemporalConditionModel

from gm.checkpoint import open_checkpoint
from svd_tools.key_map import UNET_PREFIX, diffusers_places


def load_unet(checkpoint: Path) -> UNetSpatioTemporalConditionModel:
    """The full-size UNet."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
    with open_checkpoint(checkpoint) as source:
        names = [name for name in source.info if name.startswith(UNET_PREFIX)]
        state = {place.names[0]: torch.from_numpy(source.read(name)) for name, place in diffusers_places(names).items()}
    unet.load_state_dict(state, assign=True)
    return unet.eval()
