"""mindone's `examples/svd` YAML files in this project's terms: where its classes live here, and its options' fate.

An option that the reference stores but that changes nothing is dropped; one that can only have the value which this
network has is checked; any other value is refused.
"""

from typing import Any, Dict, Mapping

from gm.errors import UserError

TARGETS: Mapping[str, str] = {
    "models.diffusion.VideoDiffusionEngine": "gm.engine.DiffusionEngine",
    "modules.encoders.modules.FrozenOpenCLIPImagePredictionEmbedder": (
        "modules.encoders.FrozenOpenCLIPImagePredictionEmbedder"
    ),
    "modules.encoders.modules.VideoPredictionEmbedderWithEncoder": (
        "modules.encoders.VideoPredictionEmbedderWithEncoder"
    ),
    "gm.modules.GeneralConditioner": "gm.conditioner.GeneralConditioner",
    "gm.modules.embedders.modules.FrozenOpenCLIPImageEmbedder": "gm.embedders.FrozenOpenCLIPImageEmbedder",
    "gm.modules.embedders.modules.ConcatTimestepEmbedderND": "gm.embedders.ConcatTimestepEmbedderND",
    "gm.modules.diffusionmodules.denoiser.Denoiser": "gm.denoiser.Denoiser",
    "gm.modules.diffusionmodules.denoiser_scaling.VScalingWithEDMcNoise": "gm.denoiser.VScalingWithEDMcNoise",
    "gm.models.autoencoder.AutoencodingEngine": "gm.autoencoder.AutoencodingEngine",
    "gm.models.autoencoder.AutoencoderKL": "gm.autoencoder.AutoencoderKL",
    "gm.models.autoencoder.AutoencoderKLModeOnly": "gm.autoencoder.AutoencoderKL",
    "gm.modules.diffusionmodules.model.Encoder": "gm.autoencoder.Encoder",
    "gm.modules.diffusionmodules.model.Decoder": "gm.autoencoder.Decoder",
    "gm.modules.diffusionmodules.sampler.EulerEDMSampler": "gm.sampler.EulerEDMSampler",
    "modules.diffusionmodules.sampler.EulerEDMSampler": "gm.sampler.EulerEDMSampler",
    "gm.modules.diffusionmodules.discretizer.EDMDiscretization": "gm.discretizer.EDMDiscretization",
    "gm.modules.diffusionmodules.guiders.LinearPredictionGuider": "gm.guider.LinearPredictionGuider",
    "modules.diffusionmodules.guiders.LinearPredictionGuider": "gm.guider.LinearPredictionGuider",
}

# Options without effect on the result here.
WITHOUT_EFFECT = {
    "VideoDiffusionEngine": {"disable_first_stage_amp"},
    "VideoUNet": {"spatial_transformer_attn_type", "use_checkpoint", "use_recompute"},
    "FrozenOpenCLIPImagePredictionEmbedder": {"is_trainable"},
    "FrozenOpenCLIPImageEmbedder": {"freeze"},
    "ConcatTimestepEmbedderND": {"is_trainable"},
    "VideoPredictionEmbedderWithEncoder": {"is_trainable", "disable_encoder_amp"},
    "AutoencodingEngine": {"loss", "loss_config", "regularizer_config"},
    "AutoencoderKLModeOnly": {"monitor"},
    "AutoencoderKL": {"monitor"},
    "Denoiser": {"weighting_config"},
    "Encoder": {"attn_type", "resolution"},
    "Decoder": {"attn_type", "resolution"},
    "VideoDecoder": {"attn_type", "resolution"},
}

# Options that the network here has in one value only.
_AUTOENCODER = {"double_z": True, "attn_resolutions": [], "dropout": 0.0}
FIXED: Mapping[str, Mapping[str, Any]] = {
    "VideoUNet": {
        "num_classes": "sequential",
        "use_linear_in_transformer": True,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "video_kernel_size": [3, 1, 1],
    },
    "FrozenOpenCLIPImagePredictionEmbedder": {"n_cond_frames": 1, "n_copies": 1},
    "VideoPredictionEmbedderWithEncoder": {"n_cond_frames": 1, "n_copies": 1, "is_ae": True},
    "Encoder": {**_AUTOENCODER, "out_ch": 3},
    "Decoder": {**_AUTOENCODER, "in_channels": 3},
    "VideoDecoder": {**_AUTOENCODER, "in_channels": 3, "video_kernel_size": [3, 1, 1]},
}

VISION_TOWER = {"target": "gm.clip.OpenCLIP", "params": {"visual": {"target": "gm.clip.VisionTransformer"}}}


def our_target(target: str) -> str:
    """The path, in this project, of a class that a YAML file names."""
    return TARGETS.get(target, target)


def our_options(target: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """A target's options without those of the reference that change nothing.

    Raises:
        UserError: an option has a value that this project's network does not have.
    """
    name = target.rpartition(".")[2]
    options = {key: value for key, value in options.items() if key not in WITHOUT_EFFECT.get(name, ())}
    for key, value in FIXED.get(name, {}).items():
        given = options.pop(key, value)
        if given != value:
            raise UserError(f"the configuration asks {name} for {key}={given}; this network has {key}={value} only")
    if target == "gm.modules.GeneralConditioner":
        options["embedders"] = [_embedder(node) for node in options.pop("emb_models")]
    elif target == "gm.modules.embedders.modules.FrozenOpenCLIPImageEmbedder":
        options.setdefault("model", VISION_TOWER)
    elif name in ("AutoencoderKLModeOnly", "AutoencoderKL") and "ddconfig" in options:
        options.update(_autoencoder(options.pop("ddconfig")))
    return options


def _embedder(node: Mapping[str, Any]) -> Dict[str, Any]:
    """The reference keeps `input_key` beside `target`; here it is an argument."""
    params = {**(node.get("params") or {}), "input_key": node["input_key"]}
    return {"target": node["target"], "params": params}


def _autoencoder(ddconfig: Mapping[str, Any]) -> Dict[str, Any]:
    """An encoder and a decoder from the options that they share."""
    path = "gm.modules.diffusionmodules.model."
    return {name.lower(): {"target": path + name, "params": dict(ddconfig)} for name in ("Encoder", "Decoder")}
