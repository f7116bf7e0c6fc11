"""The JSON files of a diffusers folder, from a network's shapes and its YAML.

Shapes give widths, depths and where there is attention; the YAML gives what they do not tell: attention heads, the
scale factor, the number of frames.
"""

import inspect
import logging
import re
from math import isqrt
from typing import Any, Dict, Iterator, List, Mapping, Tuple

from gm.config.factory import find_class, load_config
from gm.config.targets import our_options, our_target
from gm.errors import UserError
from gm.files import PathLike
from svd_tools.conversion.diffusers_layout import diffusers_shapes
from svd_tools.conversion.key_map import is_plain_decoder
from svd_tools.conversion.targets import json_text

Shape = Tuple[int, ...]
_log = logging.getLogger(__name__)

FORMAT_VERSION = "0.24.0"  # the first diffusers with StableVideoDiffusionPipeline
ENGINE, VIDEO_UNET = "modules.video_model.VideoDiffusionEngine", "modules.video_unet.VideoUNet"
IMAGE_TOWER = "gm.networks.clip.VisionTransformer"
PLAIN_VAE, TEMPORAL_VAE = "AutoencoderKL", "AutoencoderKLTemporalDecoder"
NORM_GROUPS = 32  # fixed in diffusers
MIDDLE_BLOCKS = 2  # of the decoder; diffusers' temporal decoder has as many as `layers_per_block`
CLIP_IMAGE_SIZE = 224  # to which diffusers' pipeline scales the image for CLIP, whatever the encoder's own size
OPENAI_MEAN, OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

SCHEDULER = {  # scheduler/scheduler_config.json as published
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": FORMAT_VERSION,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}


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
    vae_class = PLAIN_VAE if is_plain_decoder(wanted) else TEMPORAL_VAE
    engine = _with_defaults(ENGINE, options)
    clip = _image_encoder(shapes, _with_defaults(IMAGE_TOWER, options))
    values = {
        "model_index.json": _model_index(vae_class),
        "scheduler/scheduler_config.json": SCHEDULER,
        "feature_extractor/preprocessor_config.json": _feature_extractor(clip["image_size"]),
        "unet/config.json": _unet(shapes, _with_defaults(VIDEO_UNET, options), engine),
        "vae/config.json": _vae(shapes, vae_class, engine),
        "image_encoder/config.json": clip,
    }
    return {path: json_text(value) for path, value in values.items()}


def _with_defaults(target: str, options: Mapping[str, Mapping[str, Any]]) -> Dict[str, Any]:
    """What the configuration gives a class, and the class's defaults for the rest."""
    parameters = inspect.signature(find_class(target)).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {**defaults, **options.get(target, {})}


def _targets(node: Any) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Every `target` in a configuration, by this project's name for it, with its params; outer ones last."""
    if isinstance(node, Mapping):
        if "target" in node:
            options = our_options(node["target"], dict(node.get("params") or {}))
            yield from _targets(options)
            yield our_target(node["target"]), options
        else:
            for value in node.values():
                yield from _targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _targets(value)


def _model_index(vae_class: str) -> Dict[str, Any]:
    return {
        "_class_name": "StableVideoDiffusionPipeline",
        "_diffusers_version": FORMAT_VERSION,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
        "vae": ["diffusers", vae_class],
    }


def _feature_extractor(image_size: int) -> Dict[str, Any]:
    return {
        "crop_size": {"height": image_size, "width": image_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": OPENAI_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": OPENAI_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": image_size},
    }


def _unet(shapes: Mapping[str, Shape], unet: Mapping[str, Any], engine: Mapping[str, Any]) -> Dict[str, Any]:
    widths = _widths(shapes, "unet/down_blocks.{}.resnets.0.spatial_res_block.conv1.weight")
    attention = [f"unet/down_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(len(widths))]
    down = ["CrossAttnDownBlockSpatioTemporal" if has else "DownBlockSpatioTemporal" for has in attention]
    up = ["CrossAttnUpBlockSpatioTemporal" if has else "UpBlockSpatioTemporal" for has in reversed(attention)]
    mid = "unet/mid_block.attentions.0."
    embedding = shapes["unet/add_embedding.linear_1.weight"][1]
    return {
        "_class_name": "UNetSpatioTemporalConditionModel",
        "_diffusers_version": FORMAT_VERSION,
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
        "sample_size": 96,
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
        "_diffusers_version": FORMAT_VERSION,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "force_upcast": True,
        "in_channels": shapes["vae/encoder.conv_in.weight"][1],
        "latent_channels": shapes["vae/decoder.conv_in.weight"][1],
        "layers_per_block": depth,
        "out_channels": shapes["vae/decoder.conv_out.weight"][0],
        "sample_size": 768,
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
            image_size,
            CLIP_IMAGE_SIZE,
        )
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": width,
        "image_size": image_size,
        "intermediate_size": shapes[f"{vision}encoder.layers.0.mlp.fc1.weight"][0],
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": clip["heads"],
        "num_channels": 3,
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
