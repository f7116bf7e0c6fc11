"""Where each published parameter lives in the diffusers layout: names, and how the data is laid out there.

The map is computed from the published names alone, so it holds at any width and depth, and in both directions: every
published tensor is one diffusers tensor, or the stack of three (OpenCLIP's `in_proj`), or has no place there at all
(:func:`placeless`). Sources: the parameter names of diffusers' UNetSpatioTemporalConditionModel,
AutoencoderKLTemporalDecoder, UNet2DConditionModel and AutoencoderKL and of transformers' CLIPVisionModelWithProjection,
CLIPTextModel and CLIPTextModelWithProjection, beside the published checkpoints'.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, Mapping, Set, Tuple

UNET, VAE, IMAGE_ENCODER = "unet", "vae", "image_encoder"  # sub-folders of the diffusers layout
TEXT_ENCODER, TEXT_ENCODER_2 = "text_encoder", "text_encoder_2"

UNET_PREFIX = "model.diffusion_model."
FIRST_STAGE_PREFIX = "first_stage_model."
CLIP_PREFIX = "conditioner.embedders.0.open_clip.model."
VISUAL_PREFIX = CLIP_PREFIX + "visual."
EMBEDDER_VAE_PREFIX = "conditioner.embedders.3.encoder."
TEXT_MODEL = "text_model."
SD_TEXT_PREFIX = "cond_stage_model.transformer." + TEXT_MODEL  # Stable Diffusion 1
OPEN_CLIP_2_PREFIX = "cond_stage_model.model."  # Stable Diffusion 2
XL_TEXT_PREFIX = "conditioner.embedders.0.transformer." + TEXT_MODEL
XL_TEXT_2_PREFIX = "conditioner.embedders.1.model."

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
_VAE_RULES = (  # applied in this order; up levels are counted from the other end beforehand
    (r"^decoder\.conv_out\.time_mix_conv\.", "decoder.time_conv_out."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.(down|up)\.(\d+)\.", r".\1_blocks.\2."),
    (r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
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
_TEXT_ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Place:
    """Where a published tensor lives in the diffusers layout.

    Attributes:
        component: the sub-folder: "unet", "vae", "image_encoder", "text_encoder" or "text_encoder_2".
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
    # The flat numbers of the UNet's blocks that end each level but the last, and the VAE's levels.
    level_ends = {
        "input": _indices(UNET_PREFIX, r"input_blocks\.(\d+)\.0\.op\.weight$", names),
        "output": _indices(UNET_PREFIX, r"output_blocks\.(\d+)\.[12]\.conv\.weight$", names),
    }
    vae_levels = len(_indices(FIRST_STAGE_PREFIX, r"decoder\.up\.(\d+)\.", names))
    temporal, video = not is_plain_decoder(names), is_video(names)
    part_places: Dict[str, Callable[[str], Place]] = {
        UNET_PREFIX: lambda name: Place(UNET, (_unet_name(name, level_ends, video),)),
        VISUAL_PREFIX: lambda name: _open_clip_place(name, IMAGE_ENCODER, "vision_model", _CLIP_ENDS),
        FIRST_STAGE_PREFIX: lambda name: _vae_place(name, vae_levels, temporal and name.startswith("decoder.")),
        EMBEDDER_VAE_PREFIX: lambda name: _vae_place(name, vae_levels, False),
        OPEN_CLIP_2_PREFIX: lambda name: _open_clip_place(name, TEXT_ENCODER, "text_model", _TEXT_ENDS),
        SD_TEXT_PREFIX: lambda name: Place(TEXT_ENCODER, (TEXT_MODEL + name,)),
        XL_TEXT_PREFIX: lambda name: Place(TEXT_ENCODER, (TEXT_MODEL + name,)),
        XL_TEXT_2_PREFIX: lambda name: _open_clip_place(name, TEXT_ENCODER_2, "text_model", _TEXT_ENDS),
    }
    places, without = {}, placeless(names)
    for name in names:
        if name not in without:
            prefix = next((prefix for prefix in part_places if name.startswith(prefix)), None)
            if prefix is None:
                raise UnknownName(name)
            places[name] = part_places[prefix](name[len(prefix) :])
    return places


def placeless(published: Iterable[str]) -> Set[str]:
    """The published tensors for which the diffusers layout has none.

    Of a video model: the encoder of the first stage (diffusers has one encoder, that of the conditioner, with
    `quant_conv`); the decoder of the conditioner's autoencoder, which only encodes; what is left of CLIP's text tower.
    Of Stable Diffusion 2: the text tower's last block and its projection, which nothing runs.
    """
    names = set(published)
    without = set(filter(is_unused, names))
    if is_video(names):
        first = (FIRST_STAGE_PREFIX + "encoder.", FIRST_STAGE_PREFIX + "quant_conv.")
        without |= {name for name in names if name.startswith(first)}
    blocks = _indices(OPEN_CLIP_2_PREFIX, r"transformer\.resblocks\.(\d+)\.", names)
    if blocks:
        last = (f"{OPEN_CLIP_2_PREFIX}transformer.resblocks.{blocks[-1]}.", f"{OPEN_CLIP_2_PREFIX}text_projection")
        without |= {name for name in names if name.startswith(last)}
    return without


def is_unused(name: str) -> bool:
    """Whether no program reads this tensor: 140 of the conditioner's decoder, 6 of CLIP's text tower; the temperature
    that text towers were trained with."""
    if name.startswith(EMBEDDER_VAE_PREFIX):
        return name[len(EMBEDDER_VAE_PREFIX) :].startswith(("decoder.", "post_quant_conv."))
    if name.startswith(CLIP_PREFIX):
        return not name.startswith(VISUAL_PREFIX)
    return name.endswith(".model.logit_scale")


def is_video(published: Iterable[str]) -> bool:
    """Whether they are a video model's: there is an image's encoder, or time."""
    return any(name.startswith(EMBEDDER_VAE_PREFIX) or ".time_stack." in name for name in published)


def is_plain_decoder(published: Iterable[str]) -> bool:
    """Whether the first stage decodes frame by frame (the `*_image_decoder` variants)."""
    return FIRST_STAGE_PREFIX + "post_quant_conv.weight" in published


def _indices(prefix: str, pattern: str, names: Iterable[str]) -> List[int]:
    """The different numbers that the pattern finds, sorted."""
    matches = map(re.compile(re.escape(prefix) + pattern).match, names)
    return sorted({int(match[1]) for match in matches if match})


def _renamed(table: Mapping[str, str], name: str) -> str:
    """A name whose part before `.weight` or `.bias` is looked up."""
    stem, _, kind = name.rpartition(".")
    if stem not in table:
        raise UnknownName(name)
    return f"{table[stem]}.{kind}"


def _unet_name(name: str, level_ends: Mapping[str, List[int]], video: bool) -> str:
    """A UNet parameter's name in diffusers, which counts blocks by level."""
    block = re.match(r"(input|output|middle)_blocks?\.(\d+)\.(.+)$", name)
    if not block or name.rpartition(".")[0] in _UNET_ENDS:
        return _renamed(_UNET_ENDS, name)
    half, index, rest = block[1], int(block[2]), block[3]
    if half == "middle":
        where = "attentions.0" if index == 1 else f"resnets.{index // 2}"
        return f"mid_block.{where}.{_layer(index == 1, rest, video)}"
    submodule, rest = rest.split(".", 1)
    way, before = ("down", 1) if half == "input" else ("up", 0)  # input block 0 is the first convolution
    level = bisect_left(level_ends[half], index)
    if rest.startswith(("op.", "conv.")):
        return f"{way}_blocks.{level}.{way}samplers.0.conv.{rest.partition('.')[2]}"
    first = level_ends[half][level - 1] + 1 if level else before
    group = "attentions" if submodule == "1" else "resnets"
    return f"{way}_blocks.{level}.{group}.{index - first}.{_layer(submodule == '1', rest, video)}"


def _layer(in_transformer: bool, rest: str, video: bool = True) -> str:
    """A parameter inside a transformer or a residual block."""
    if in_transformer:
        rest = re.sub(r"^time_pos_embed\.([02])\.", lambda m: f"time_pos_embed.linear_{1 + int(m[1]) // 2}.", rest)
        return re.sub(r"^time_stack\.", "temporal_transformer_blocks.", rest)
    if rest.startswith("time_mixer."):
        return rest
    if rest.startswith("time_stack."):
        return f"temporal_res_block.{_renamed(_RES_BLOCK, rest[len('time_stack.') :])}"
    return ("spatial_res_block." if video else "") + _renamed(_RES_BLOCK, rest)


def _vae_place(name: str, levels: int, in_temporal_decoder: bool) -> Place:
    attention = re.match(r"(encoder|decoder)\.mid\.attn_1\.(\w+)\.(weight|bias)$", name)
    if attention:
        half, layer, kind = attention.groups()
        layout = CONV_1X1 if layer != "norm" and kind == "weight" else AS_IS
        return Place(VAE, (f"{half}.mid_block.attentions.0.{_VAE_ATTENTION[layer]}.{kind}",), layout)
    name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up.{levels - 1 - int(m[1])}.", name)
    for pattern, replacement in _VAE_RULES:
        name = re.sub(pattern, replacement, name)
    block = re.match(r"(.*\.resnets\.\d+)\.(.+)$", name)
    if block and in_temporal_decoder:
        stem, layer = block.groups()
        if layer.startswith("time_stack."):
            layer = _layer(False, layer)
        elif layer == "mix_factor":
            layer = "time_mixer.mix_factor"
        else:
            layer = f"spatial_res_block.{layer}"
        name = f"{stem}.{layer}"
    return Place(VAE, (name,))


def _open_clip_place(name: str, component: str, tower: str, ends: Mapping[str, str]) -> Place:
    """Of OpenCLIP's transformer, and of what is before and after it."""
    if name in ends:
        return Place(component, (ends[name],), TRANSPOSED if name in ("proj", "text_projection") else AS_IS)
    block = _RESBLOCK.match(name)
    if not block:
        raise UnknownName(name)
    layer = f"{tower}.encoder.layers.{block[1]}"
    if block[2].startswith("attn.in_proj_"):
        kind = block[2][len("attn.in_proj_") :]
        return Place(component, tuple(f"{layer}.self_attn.{x}_proj.{kind}" for x in "qkv"))
    return Place(component, (f"{layer}.{_renamed(_CLIP_BLOCK, block[2])}",))
