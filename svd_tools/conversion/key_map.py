"""Where each published parameter lives in the diffusers layout: names, and how the data is laid out there.

The map is computed from the published names alone, so it holds at any width and depth, and in both directions: every
published tensor is one diffusers tensor, or the stack of three (OpenCLIP's `in_proj`), or has no place there at all
(:func:`has_no_place`). Sources: the parameter names of diffusers' UNetSpatioTemporalConditionModel and
AutoencoderKLTemporalDecoder and of transformers' CLIPVisionModelWithProjection, beside the published checkpoint's.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Tuple

UNET, VAE, IMAGE_ENCODER = "unet", "vae", "image_encoder"  # sub-folders of the diffusers layout

UNET_PREFIX = "model.diffusion_model."
FIRST_STAGE_PREFIX = "first_stage_model."
CLIP_PREFIX = "conditioner.embedders.0.open_clip.model."
VISUAL_PREFIX = CLIP_PREFIX + "visual."
EMBEDDER_VAE_PREFIX = "conditioner.embedders.3.encoder."

AS_IS, TRANSPOSED, CONV_1X1 = "as is", "transposed", "1x1 convolution"

_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CLIP_ENDS = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}


@dataclass(frozen=True)
class Place:
    """Where a published tensor lives in the diffusers layout.

    Attributes:
        component: the sub-folder: "unet", "vae" or "image_encoder".
        names: the tensor there, or those that make it up when stacked along the first axis.
        layout: AS_IS; TRANSPOSED; CONV_1X1, published as (c, c', 1, 1) and there as (c, c').
    """

    component: str
    names: Tuple[str, ...]
    layout: str = AS_IS


class UnknownName(ValueError):
    """A published-looking name that belongs to no known part of the network."""


def diffusers_places(published: Iterable[str]) -> Dict[str, Place]:
    """The place of every published name that has one, in the given order.

    Raises:
        UnknownName: a name that is neither mapped nor known to have no place.
    """
    names = list(published)
    unet = _UnetBlocks(names)
    vae_levels = _num_vae_levels(names)
    plain_decoder = is_plain_decoder(names)
    places = {}
    for name in names:
        place = _place(name, unet, vae_levels, plain_decoder)
        if place is not None:
            places[name] = place
    return places


def has_no_place(name: str) -> bool:
    """Whether the diffusers layout has no tensor for this published one.

    Those are: the encoder of the first stage (diffusers has one encoder, that of the conditioner, with `quant_conv`);
    the decoder of the conditioner's autoencoder, which only encodes; what is left of CLIP's text tower.
    """
    return name.startswith((FIRST_STAGE_PREFIX + "encoder.", FIRST_STAGE_PREFIX + "quant_conv.")) or is_unused(name)


def is_unused(name: str) -> bool:
    """Whether no program reads this tensor: 140 of the conditioner's decoder, 6 of CLIP's text tower."""
    if name.startswith(EMBEDDER_VAE_PREFIX):
        return name[len(EMBEDDER_VAE_PREFIX) :].startswith(("decoder.", "post_quant_conv."))
    return name.startswith(CLIP_PREFIX) and not name.startswith(VISUAL_PREFIX)


def is_plain_decoder(published: Iterable[str]) -> bool:
    """Whether the first stage decodes frame by frame (the `*_image_decoder` variants)."""
    return FIRST_STAGE_PREFIX + "post_quant_conv.weight" in published


def _place(name: str, unet: "_UnetBlocks", vae_levels: int, plain_decoder: bool) -> Optional[Place]:
    if has_no_place(name):
        return None
    if name.startswith(UNET_PREFIX):
        return Place(UNET, (unet.rename(name[len(UNET_PREFIX) :]),))
    if name.startswith(VISUAL_PREFIX):
        return _clip_place(name[len(VISUAL_PREFIX) :])
    for prefix in (FIRST_STAGE_PREFIX, EMBEDDER_VAE_PREFIX):
        if name.startswith(prefix):
            temporal = prefix == FIRST_STAGE_PREFIX and not plain_decoder
            return _vae_place(name[len(prefix) :], vae_levels, temporal)
    raise UnknownName(name)


# ---------------------------------------------------------------------------------------------------------- UNet


class _UnetBlocks:
    """The flat numbering of the UNet's blocks, against diffusers' levels."""

    def __init__(self, names: Iterable[str]):
        down = re.compile(re.escape(UNET_PREFIX) + r"input_blocks\.(\d+)\.0\.op\.weight$")
        up = re.compile(re.escape(UNET_PREFIX) + r"output_blocks\.(\d+)\.[12]\.conv\.weight$")
        names = list(names)
        self._downsamplers = _indices(down, names)  # input block that ends each level but the last
        self._upsamplers = _indices(up, names)  # output block that holds the upsampler of each level but the last

    def rename(self, name: str) -> str:
        """A UNet parameter's name in diffusers."""
        stem, _, kind = name.rpartition(".")
        if stem in _UNET_ENDS:
            return f"{_UNET_ENDS[stem]}.{kind}"
        block = re.match(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(.+)$", name)
        if not block:
            raise UnknownName(name)
        group, index, rest = block[1], int(block[2]), block[3]
        if group == "middle_block":
            where = "attentions.0" if index == 1 else f"resnets.{index // 2}"
            return f"mid_block.{where}.{_layer(index % 2, rest)}"
        submodule, rest = rest.split(".", 1)
        if group == "input_blocks":
            return self._down(index, int(submodule), rest)
        return self._up(index, int(submodule), rest)

    def _down(self, index: int, submodule: int, rest: str) -> str:
        level = bisect_left(self._downsamplers, index)
        if rest.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{rest[3:]}"
        first = self._downsamplers[level - 1] + 1 if level else 1  # input block 0 is the first convolution
        return f"down_blocks.{level}.{_group(submodule)}.{index - first}.{_layer(submodule, rest)}"

    def _up(self, index: int, submodule: int, rest: str) -> str:
        level = bisect_left(self._upsamplers, index)
        if rest.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.{rest}"
        first = self._upsamplers[level - 1] + 1 if level else 0
        return f"up_blocks.{level}.{_group(submodule)}.{index - first}.{_layer(submodule, rest)}"


def _indices(pattern: "re.Pattern[str]", names: Iterable[str]) -> List[int]:
    return sorted({int(match[1]) for match in map(pattern.match, names) if match})


def _group(submodule: int) -> str:
    return "attentions" if submodule == 1 else "resnets"


def _layer(submodule: int, rest: str) -> str:
    """A parameter inside a ResBlock (submodule 0) or a transformer (1)."""
    return _transformer_layer(rest) if submodule == 1 else _video_res_block(rest)


def _video_res_block(rest: str) -> str:
    if rest.startswith("time_mixer."):
        return rest
    block, layer = "spatial_res_block", rest
    if rest.startswith("time_stack."):
        block, layer = "temporal_res_block", rest[len("time_stack.") :]
    stem, _, kind = layer.rpartition(".")
    if stem not in _RES_BLOCK:
        raise UnknownName(rest)
    return f"{block}.{_RES_BLOCK[stem]}.{kind}"


def _transformer_layer(rest: str) -> str:
    rest = re.sub(r"^time_pos_embed\.([02])\.", lambda m: f"time_pos_embed.linear_{1 + int(m[1]) // 2}.", rest)
    return re.sub(r"^time_stack\.", "temporal_transformer_blocks.", rest)


# ----------------------------------------------------------------------------------------------------------- VAE


def _num_vae_levels(names: Iterable[str]) -> int:
    levels = _indices(re.compile(re.escape(FIRST_STAGE_PREFIX) + r"decoder\.up\.(\d+)\."), names)
    return len(levels)


def _vae_place(name: str, levels: int, temporal_decoder: bool) -> Place:
    attention = re.match(r"(encoder|decoder)\.mid\.attn_1\.(\w+)\.(weight|bias)$", name)
    if attention:
        half, layer, kind = attention.groups()
        layout = CONV_1X1 if layer != "norm" and kind == "weight" else AS_IS
        return Place(VAE, (f"{half}.mid_block.attentions.0.{_VAE_ATTENTION[layer]}.{kind}",), layout)
    half = name.partition(".")[0]
    name = name.replace("decoder.conv_out.time_mix_conv.", "decoder.time_conv_out.")
    name = re.sub(r"\.norm_out\.", ".conv_norm_out.", name)
    name = re.sub(r"\.down\.(\d+)\.downsample\.conv\.", r".down_blocks.\1.downsamplers.0.conv.", name)
    name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", name)
    name = name.replace(".upsample.conv.", ".upsamplers.0.conv.")
    block = re.match(r"(.*)\.(?:mid\.block_(\d)|(down\.\d+|up_blocks\.\d+)\.block\.(\d+))\.(.+)$", name)
    if not block:
        return Place(VAE, (name,))
    stem, mid, level, index, rest = block.groups()
    where = f"mid_block.resnets.{int(mid) - 1}" if mid else f"{level.replace('down.', 'down_blocks.')}.resnets.{index}"
    layer = _temporal_decoder_block(rest) if temporal_decoder and half == "decoder" else _shortcut(rest)
    return Place(VAE, (f"{stem}.{where}.{layer}",))


def _temporal_decoder_block(rest: str) -> str:
    if rest == "mix_factor":
        return "time_mixer.mix_factor"
    if rest.startswith("time_stack."):
        return _video_res_block(rest)
    return f"spatial_res_block.{_shortcut(rest)}"


def _shortcut(rest: str) -> str:
    return rest.replace("nin_shortcut.", "conv_shortcut.")


# ---------------------------------------------------------------------------------------------------------- CLIP


def _clip_place(name: str) -> Place:
    if name in _CLIP_ENDS:
        return Place(IMAGE_ENCODER, (_CLIP_ENDS[name],), TRANSPOSED if name == "proj" else AS_IS)
    block = re.match(r"transformer\.resblocks\.(\d+)\.(.+)$", name)
    if not block:
        raise UnknownName(VISUAL_PREFIX + name)
    layer = f"vision_model.encoder.layers.{block[1]}"
    if block[2].startswith("attn.in_proj_"):
        kind = block[2][len("attn.in_proj_") :]
        return Place(IMAGE_ENCODER, tuple(f"{layer}.self_attn.{x}_proj.{kind}" for x in "qkv"))
    stem, _, kind = block[2].rpartition(".")
    if stem not in _CLIP_BLOCK:
        raise UnknownName(VISUAL_PREFIX + name)
    return Place(IMAGE_ENCODER, (f"{layer}.{_CLIP_BLOCK[stem]}.{kind}",))
