"""diffusers' networks with the weights of a published file, memory-mapped."""

from pathlib import Path
from typing import Dict

import torch
from diffusers import UNetSpatioTemporalConditionModel

from gm.checkpoint import open_checkpoint
from gm.config import load_config
from svd_tools.key_map import UNET_PREFIX, diffusers_places


def load_unet(checkpoint: Path) -> UNetSpatioTemporalConditionModel:
    """The full-size UNet."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
    unet.load_state_dict(_state(checkpoint), assign=True)
    return unet.eval()


def unet_of_config(config: Path, checkpoint: Path) -> UNetSpatioTemporalConditionModel:
    """The UNet of one of this project's YAML files, with weights of its own to train.

    As in this project it takes the embedded conditioning vector, not the numbers that it is made of.
    """
    options = load_config(config)["model"]["params"]["network_config"]["params"]
    widths = [options["model_channels"] * multiple for multiple in options["channel_mult"]]
    kinds = ["CrossAttn" if 2**level in options["attention_resolutions"] else "" for level in range(len(widths))]
    vector = options["adm_in_channels"]
    unet = UNetSpatioTemporalConditionModel(
        in_channels=options["in_channels"],
        out_channels=options["out_channels"],
        block_out_channels=widths,
        down_block_types=[f"{kind}DownBlockSpatioTemporal" for kind in kinds],
        up_block_types=[f"{kind}UpBlockSpatioTemporal" for kind in kinds[::-1]],
        layers_per_block=options["num_res_blocks"],
        num_attention_heads=[width // options["num_head_channels"] for width in widths],
        cross_attention_dim=options["context_dim"],
        addition_time_embed_dim=vector // 3,
        projection_class_embeddings_input_dim=vector,
    )
    unet.add_time_proj = torch.nn.Identity()
    for norm in unet.modules():
        if isinstance(norm, torch.nn.GroupNorm):
            norm.num_groups = options.get("num_groups", norm.num_groups)
    unet.load_state_dict({name: tensor.clone() for name, tensor in _state(checkpoint).items()})
    return unet


def _state(checkpoint: Path) -> Dict[str, torch.Tensor]:
    """diffusers' name -> tensor, on the file's memory map."""
    with open_checkpoint(checkpoint) as source:
        names = [name for name in source.info if name.startswith(UNET_PREFIX)]
        return {place.names[0]: torch.from_numpy(source.read(name)) for name, place in diffusers_places(names).items()}
