"""The JSON files of a diffusers folder, from a network's shapes and its YAML.

diffusers_folder.json holds what is the same for every network, as the published folder has it. Shapes give widths,
depths and where there is attention. The YAML gives what they do not tell: attention heads, the scale factor, the number
of frames.
"""

import inspect
import json
import logging
import re
from math import isqrt
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Tuple

from gm.config.factory import find_class, load_config
from gm.config.targets import our_options, our_target
from gm.errors import UserError
from gm.files import PathLike
from gm.weights.diffusers_names import is_plain_decoder, is_video
from svd_tools.conversion.diffusers_layout import diffusers_shapes
from svd_tools.conversion.image_folder import image_texts

Shape = Tuple[int, ...]
_log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("diffusers_folder.json")
SCHEDULER = "scheduler/scheduler_config.json"
ENGINE, VIDEO_UNET = "modules.video_model.VideoDiffusionEngine", "modules.video_unet.VideoUNet"
IMAGE_ENGINE, IMAGE_UNET = "gm.text_model.TextToImageEngine", "gm.networks.unet.UNet"
IMAGE_TOWER = "gm.networks.clip.VisionTransformer"
PLAIN_VAE, TEMPORAL_VAE = "AutoencoderKL", "AutoencoderKLTemporalDecoder"
NORM_GROUPS = 32  # fixed in diffusers
MIDDLE_BLOCKS = 2  # of the decoder; diffusers' temporal decoder has as many as `layers_per_block`
CLIP_IMAGE_SIZE = 224  # to which diffusers' pipeline scales the image for CLIP, whatever the encoder's own size


def templates() -> Dict[str, Dict[str, Any]]:
    """Path inside the folder → what its JSON file holds for every network."""
    return json.loads(TEMPLATES.read_text(encoding="utf-8"))


def diffusers_texts(config_path: PathLike, wanted: Mapping[str, Shape]) -> Dict[str, str]:
    """Path inside the folder → content, for every file of a diffusers folder but the weights.

    Raises:
        UserError: a network that diffusers' classes cannot express.
    """
    options = dict(_targets(load_config(config_path)))
    for target, values in options.items():
        if values.get("num_groups", NORM_GROUPS) != NORM_GROUPS:
            raise UserError(
                f"--to diffusers: its classes have norms of {NORM_GROUPS} groups only; {target} of {config_path} has "
                f"num_groups={values['num_groups']}"
            )
    shapes = diffusers_shapes(wanted)
    if not is_video(wanted):
        engine, unet = _with_defaults(IMAGE_ENGINE, options), _with_defaults(IMAGE_UNET, options)
        return image_texts(shapes, options, unet, engine, _vae(shapes, PLAIN_VAE, engine))
    vae_class = PLAIN_VAE if is_plain_decoder(wanted) else TEMPORAL_VAE
    engine = _with_defaults(ENGINE, options)
    clip = _image_encoder(shapes, _with_defaults(IMAGE_TOWER, options))
    image_size = clip["image_size"]
    values = {
        "model_index.json": {"vae": ["diffusers", vae_class]},
        SCHEDULER: {},
        "feature_extractor/preprocessor_config.json": {
            "crop_size": {"height": image_size, "width": image_size},
            "size": {"shortest_edge": image_size},
        },
        "unet/config.json": _unet(shapes, _with_defaults(VIDEO_UNET, options), engine),
        "vae/config.json": _vae(shapes, vae_class, engine),
        "image_encoder/config.json": clip,
    }
    constants = templates()
    return {p: json.dumps({**constants[p], **own}, indent=2, sort_keys=True) + "\n" for p, own in values.items()}


def _with_defaults(target: str, options: Mapping[str, Mapping[str, Any]]) -> Dict[str, Any]:
    """What the configuration gives a class, and the class's defaults for the rest."""
    parameters = inspect.signature(find_class(target)).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {**defaults, **options.get(target, {})}


def _targets(node: Any) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Every `target` in a configuration, by this project's name for it, with its params; outer ones last."""
    if isinstance(node, Mapping) and "target" in node:
        options = our_options(node["target"], dict(node.get("params") or {}))
        yield from _targets(options)
        yield our_target(node["target"]), options
    elif isinstance(node, (Mapping, list, tuple)):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _targets(value)


def _unet(shapes: Mapping[str, Shape], unet: Mapping[str, Any], engine: Mapping[str, Any]) -> Dict[str, Any]:
    widths = _widths(shapes, "unet/down_blocks.{}.resnets.0.spatial_res_block.conv1.weight")
    attention = [f"unet/down_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(len(widths))]
    down = ["CrossAttnDownBlockSpatioTemporal" if has else "DownBlockSpatioTemporal" for has in attention]
    up = ["CrossAttnUpBlockSpatioTemporal" if has else "UpBlockSpatioTemporal" for has in reversed(attention)]
    mid = "unet/mid_block.attentions.0."
    embedding = shapes["unet/add_embedding.linear_1.weight"][1]
    return {
        "addition_time_embed_dim": embedding // 3,  # fps, motion bucket, noise augmentation
        "block_out_channels": widths,
        "cross_attention_dim": shapes[f"{mid}transformer_blocks.0.attn2.to_k.weight"][1],
        "down_block_types": down,
        "in_channels": shapes["unet/conv_in.weight"][1],
        "layers_per_block": _count(shapes, r"unet/down_blocks\.0\.resnets\.(\d+)\."),
        "num_attention_heads": [width // unet["num_head_channels"] for width in widths],
        "num_frames": engine["num_frames"],
        "out_channels": shapes["unet/conv_out.weight"][0],
        "projection_class_embeddings_input_dim": embedding,
        "transformer_layers_per_block": _count(shapes, re.escape(mid) + r"transformer_blocks\.(\d+)\."),
        "up_block_types": up,
    }


def _vae(shapes: Mapping[str, Shape], class_name: str, engine: Mapping[str, Any]) -> Dict[str, Any]:
    widths = _widths(shapes, "vae/encoder.down_blocks.{}.resnets.0.conv1.weight")
    depth = _count(shapes, r"vae/encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    if class_name == TEMPORAL_VAE and depth != MIDDLE_BLOCKS:
        raise UserError(
            f"--to diffusers: its temporal decoder takes num_res_blocks={MIDDLE_BLOCKS} in the autoencoder, not {depth}"
        )
    config = {
        "_class_name": class_name,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "in_channels": shapes["vae/encoder.conv_in.weight"][1],
        "latent_channels": shapes["vae/decoder.conv_in.weight"][1],
        "layers_per_block": depth,
        "out_channels": shapes["vae/decoder.conv_out.weight"][0],
        "scaling_factor": engine["scale_factor"],
    }
    if class_name == PLAIN_VAE:
        config["up_block_types"] = ["UpDecoderBlock2D"] * len(widths)
    return config


def _image_encoder(shapes: Mapping[str, Shape], clip: Mapping[str, Any]) -> Dict[str, Any]:
    vision = "image_encoder/vision_model."
    positions, width = shapes[f"{vision}embeddings.position_embedding.weight"]
    patch_size = shapes[f"{vision}embeddings.patch_embedding.weight"][-1]
    image_size = isqrt(positions - 1) * patch_size
    if image_size != CLIP_IMAGE_SIZE:
        _log.warning(
            "the image encoder takes images of %d pixels; diffusers opens the folder, but its pipeline always gives %d",
            image_size, CLIP_IMAGE_SIZE,
        )  # fmt: skip
    return {
        "hidden_size": width,
        "image_size": image_size,
        "intermediate_size": shapes[f"{vision}encoder.layers.0.mlp.fc1.weight"][0],
        "num_attention_heads": clip["heads"],
        "num_hidden_layers": _count(shapes, re.escape(vision) + r"encoder\.layers\.(\d+)\."),
        "patch_size": patch_size,
        "projection_dim": shapes["image_encoder/visual_projection.weight"][0],
    }


def _widths(shapes: Mapping[str, Shape], pattern: str) -> List[int]:
    """Output channels of each level."""
    widths: List[int] = []
    while pattern.format(len(widths)) in shapes:
        widths.append(shapes[pattern.format(len(widths))][0])
    return widths


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    """How many different numbers the pattern finds in the names."""
    return len({match[1] for match in map(re.compile(pattern).match, shapes) if match})
