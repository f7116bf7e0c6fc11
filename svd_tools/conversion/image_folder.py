"""The JSON and text files of Stable Diffusion's diffusers folder, from a network's shapes and its YAML."""

import json
import re
from typing import Any, Dict, List, Mapping, Tuple

from gm.networks.tokenizer import END, START, TEXT_CONTEXT, read_vocabulary
from gm.weights.diffusers_names import TEXT_ENCODER, TEXT_ENCODER_2, UNET

Shape = Tuple[int, ...]
Options = Mapping[str, Mapping[str, Any]]  # of each class that the YAML names
VERSION = "0.24.0"  # of diffusers, whose present releases read its folders
TOKENIZER_FILES = ("tokenizer_config.json", "vocab.json", "merges.txt")
CLIP, OPEN_CLIP = "gm.networks.clip_text_model.CLIPTextModel", "gm.networks.clip.OpenCLIPText"
V_PREDICTION = "gm.sampling.training_levels.VScaling"
LATENT = 8  # pixels


def image_texts(
    shapes: Mapping[str, Shape],
    options: Options,
    unet: Mapping[str, Any],
    engine: Mapping[str, Any],
    vae: Mapping[str, Any],
) -> Dict[str, str]:
    """Path inside the folder -> content, for every file but the weights.

    Args:
        shapes: of the folder's tensors, "unet/conv_in.weight" and so on.
        options: of each class that the YAML names, by its path.
        unet, engine: the UNet's and the engine's, with their defaults.
        vae: `vae/config.json`.
    """
    xl = f"{TEXT_ENCODER_2}/text_projection.weight" in shapes
    texts = {
        "model_index.json": _index(xl),
        "scheduler/scheduler_config.json": _scheduler("v_prediction" if V_PREDICTION in options else "epsilon"),
        "unet/config.json": _unet(shapes, options, unet, engine),
        "vae/config.json": {**vae, "_diffusers_version": VERSION, "force_upcast": xl, "sample_size": engine["height"]},
    }
    first = CLIP if CLIP in options else OPEN_CLIP
    for component, target in ((TEXT_ENCODER, first), (TEXT_ENCODER_2, OPEN_CLIP))[: 1 + xl]:
        texts[f"{component}/config.json"] = _text_encoder(shapes, component, target, options[target])
    files = {path: json.dumps(content, indent=2, sort_keys=True) + "\n" for path, content in texts.items()}
    for folder, target in (("tokenizer", first), ("tokenizer_2", OPEN_CLIP))[: 1 + xl]:
        files.update({f"{folder}/{name}": text for name, text in _tokenizer(target == OPEN_CLIP).items()})
    return files


def _index(xl: bool) -> Dict[str, Any]:
    parts: Dict[str, Any] = {
        "_diffusers_version": VERSION,
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if not xl:
        checker = {"safety_checker": [None, None], "requires_safety_checker": False}
        return {**parts, **checker, "_class_name": "StableDiffusionPipeline"}
    second = {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "image_encoder": [None, None],
        "force_zeros_for_empty_prompt": True,
    }
    return {**parts, **second, "_class_name": "StableDiffusionXLPipeline"}


def _scheduler(prediction_type: str) -> Dict[str, Any]:
    return {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": VERSION,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _unet(
    shapes: Mapping[str, Shape], options: Options, unet: Mapping[str, Any], engine: Mapping[str, Any]
) -> Dict[str, Any]:
    widths = [unet["model_channels"] * mult for mult in unet["channel_mult"]]
    attention = [f"{UNET}/down_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(len(widths))]
    depths = unet["transformer_depth"]
    config = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        # diffusers' name for the number of heads.
        "attention_head_dim": [unet["num_heads"] or width // unet["num_head_channels"] for width in widths],
        "block_out_channels": widths,
        "cross_attention_dim": unet["context_dim"],
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention],
        "in_channels": unet["in_channels"],
        "layers_per_block": unet["num_res_blocks"],
        "out_channels": unet["out_channels"],
        "sample_size": engine["height"] // LATENT,
        "transformer_layers_per_block": depths,
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
        "use_linear_projection": unet["use_linear_in_transformer"],
    }
    if unet["adm_in_channels"]:
        outdim = options["gm.networks.conditioner.ConcatTimestepEmbedderND"]["outdim"]
        config["addition_embed_type"], config["addition_time_embed_dim"] = "text_time", outdim
        config["projection_class_embeddings_input_dim"] = unet["adm_in_channels"]
    return config


def _text_encoder(
    shapes: Mapping[str, Shape], component: str, target: str, options: Mapping[str, Any]
) -> Dict[str, Any]:
    tower = f"{component}/text_model."
    vocabulary, width = shapes[f"{tower}embeddings.token_embedding.weight"]
    layer = re.compile(re.escape(tower) + r"encoder\.layers\.(\d+)\.")
    layers = {match[1] for match in map(layer.match, shapes) if match}
    projection = shapes.get(f"{component}/text_projection.weight", (width,))
    return {
        "architectures": ["CLIPTextModelWithProjection" if component == TEXT_ENCODER_2 else "CLIPTextModel"],
        "bos_token_id": START,
        "eos_token_id": END,
        "hidden_act": "quick_gelu" if target == CLIP else "gelu",
        "hidden_size": width,
        "intermediate_size": shapes[f"{tower}encoder.layers.0.mlp.fc1.weight"][0],
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": TEXT_CONTEXT,
        "model_type": "clip_text_model",
        "num_attention_heads": options["heads"],
        "num_hidden_layers": len(layers),
        "projection_dim": projection[0],
        "vocab_size": vocabulary,
    }


def _tokenizer(pads_with_zero: bool) -> Dict[str, str]:
    """The files of transformers' CLIPTokenizer; token 0 is an exclamation mark."""
    names, merges = read_vocabulary()
    start, end = "<|startoftext|>", "<|endoftext|>"
    config = {
        "bos_token": start,
        "eos_token": end,
        "model_max_length": TEXT_CONTEXT,
        "pad_token": "!" if pads_with_zero else end,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": end,
    }
    lines = ["#version: 0.2", *map(" ".join, merges)]
    contents: List[str] = [
        json.dumps(config, indent=2, sort_keys=True) + "\n",
        json.dumps({**names, start: START, end: END}, ensure_ascii=False),
        "\n".join(lines) + "\n",
    ]
    return dict(zip(TOKENIZER_FILES, contents))
