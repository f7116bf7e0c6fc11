"""mindone's `examples/svd` YAML files, and sgm's own, in this project's terms: where their classes live here, and their
options' fate.

An option that the reference stores but that changes nothing is dropped; one of training's is dropped with a warning,
since training is configured elsewhere here; one that can only have the value which this network has is checked, and any
other value is refused.
"""

import logging
from pathlib import PurePath
from typing import Any, Dict, Mapping, Sequence

from gm.config.values import Range
from gm.errors import UserError

# The numbers that a model's YAML file may give to an option whose class names no range: those of the options by name,
# and of any other.
WHOLE_NUMBERS = Range(1, 16384)
LIMITS: Mapping[str, Range] = {
    "adm_in_channels": Range(0, 16384),
    "channel_mult": Range(1, 64),
    "ch_mult": Range(1, 64),
    "layers": Range(1, 256),
    "num_frames": Range(1, 1024),
    "num_heads": Range(0, 1024),
    "num_res_blocks": Range(1, 32),
    "scale_factor": Range(1e-6, 1e6),
    "transformer_depth": Range(1, 32),
    "vocab_size": Range(0, 1 << 20),
}

# Every class that a YAML file may name, where it is, and by which other paths: the reference's (mindone's), sgm's, and,
# last, the one that this project had before. Nothing else is imported or called.
_REFERENCE, _SGM = "gm.modules.diffusionmodules.", "sgm.modules.diffusionmodules."
_CLASSES: Mapping[str, Sequence[str]] = {
    "modules.video_model.VideoDiffusionEngine": (
        "models.diffusion.VideoDiffusionEngine", "sgm.models.diffusion.DiffusionEngine", "gm.engine.DiffusionEngine",
    ),
    "gm.networks.autoencoder.AutoencoderKL": (
        "gm.models.autoencoder.AutoencoderKL", "gm.models.autoencoder.AutoencoderKLModeOnly",
        "sgm.models.autoencoder.AutoencoderKL", "sgm.models.autoencoder.AutoencoderKLModeOnly",
        "gm.autoencoder.AutoencoderKL",
    ),
    "gm.networks.autoencoder.AutoencodingEngine": (
        "gm.models.autoencoder.AutoencodingEngine", "sgm.models.autoencoder.AutoencodingEngine",
        "gm.autoencoder.AutoencodingEngine",
    ),
    "gm.networks.autoencoder.Decoder": (_REFERENCE + "model.Decoder", _SGM + "model.Decoder", "gm.autoencoder.Decoder"),
    "gm.networks.autoencoder.Encoder": (_REFERENCE + "model.Encoder", _SGM + "model.Encoder", "gm.autoencoder.Encoder"),
    "gm.networks.clip.OpenCLIP": ("gm.clip.OpenCLIP",),
    "gm.networks.clip.OpenCLIPText": (),
    "gm.networks.clip_text_model.CLIPTextModel": (),
    "gm.networks.conditioner.CondStageModel": (),
    "gm.networks.text.FrozenCLIPEmbedder": (),
    "gm.networks.text.FrozenOpenCLIPEmbedder": (),
    "gm.networks.text.FrozenOpenCLIPEmbedder2": (),
    "gm.networks.unet.UNet": (),
    "gm.text_model.TextToImageEngine": (),
    "gm.networks.clip.VisionTransformer": ("gm.clip.VisionTransformer",),
    "gm.networks.conditioner.ConcatTimestepEmbedderND": (
        "gm.modules.embedders.modules.ConcatTimestepEmbedderND",
        "sgm.modules.encoders.modules.ConcatTimestepEmbedderND", "gm.embedders.ConcatTimestepEmbedderND",
    ),
    "gm.networks.conditioner.FrozenOpenCLIPImageEmbedder": (
        "gm.modules.embedders.modules.FrozenOpenCLIPImageEmbedder",
        "sgm.modules.encoders.modules.FrozenOpenCLIPImageEmbedder", "gm.embedders.FrozenOpenCLIPImageEmbedder",
    ),
    "gm.networks.conditioner.GeneralConditioner": (
        "gm.modules.GeneralConditioner", "sgm.modules.GeneralConditioner", "gm.conditioner.GeneralConditioner",
    ),
    "gm.sampling.denoiser.Denoiser": (
        _REFERENCE + "denoiser.Denoiser", _SGM + "denoiser.Denoiser", "gm.denoiser.Denoiser",
    ),
    "gm.sampling.training_levels.EpsScaling": (),
    "gm.sampling.training_levels.VScaling": (),
    "gm.sampling.denoiser.VScalingWithEDMcNoise": (
        _REFERENCE + "denoiser_scaling.VScalingWithEDMcNoise", _SGM + "denoiser_scaling.VScalingWithEDMcNoise",
        "gm.denoiser.VScalingWithEDMcNoise",
    ),
    "gm.sampling.guidance.ConstantGuider": ("gm.guider.ConstantGuider",),
    "modules.video_guidance.LinearPredictionGuider": (
        _REFERENCE + "guiders.LinearPredictionGuider", "modules.diffusionmodules.guiders.LinearPredictionGuider",
        _SGM + "guiders.LinearPredictionGuider", "gm.guider.LinearPredictionGuider",
    ),
    "modules.video_guidance.TrapezoidPredictionGuider": ("gm.guider.TrapezoidPredictionGuider",),
    "modules.video_guidance.TrianglePredictionGuider": ("gm.guider.TrianglePredictionGuider",),
    "gm.sampling.samplers.ConsistencySampler": ("gm.sampler.ConsistencySampler",),
    "gm.sampling.samplers.DPMPP2MSampler": ("gm.sampler.DPMPP2MSampler",),
    "gm.sampling.samplers.EulerAncestralSampler": ("gm.sampler.EulerAncestralSampler",),
    "gm.sampling.samplers.EulerEDMSampler": (
        _REFERENCE + "sampler.EulerEDMSampler", "modules.diffusionmodules.sampler.EulerEDMSampler",
        _SGM + "sampling.EulerEDMSampler", "gm.sampler.EulerEDMSampler",
    ),
    "gm.sampling.samplers.HeunEDMSampler": ("gm.sampler.HeunEDMSampler",),
    "gm.sampling.training_levels.LegacyDDPMDiscretization": (),
    "gm.sampling.schedules.AlignYourStepsDiscretization": ("gm.discretizer.AlignYourStepsDiscretization",),
    "gm.sampling.schedules.EDMDiscretization": (
        _REFERENCE + "discretizer.EDMDiscretization", _SGM + "discretizer.EDMDiscretization",
        "gm.discretizer.EDMDiscretization",
    ),
    "modules.conditioning.FrozenOpenCLIPImagePredictionEmbedder": (
        "modules.encoders.modules.FrozenOpenCLIPImagePredictionEmbedder",
        "sgm.modules.encoders.modules.FrozenOpenCLIPImagePredictionEmbedder",
        "modules.encoders.FrozenOpenCLIPImagePredictionEmbedder",
    ),
    "modules.conditioning.VideoPredictionEmbedderWithEncoder": (
        "modules.encoders.modules.VideoPredictionEmbedderWithEncoder",
        "sgm.modules.encoders.modules.VideoPredictionEmbedderWithEncoder",
        "modules.encoders.VideoPredictionEmbedderWithEncoder",
    ),
    "modules.video_decoder.VideoDecoder": (
        "sgm.modules.autoencoding.temporal_ae.VideoDecoder", "modules.temporal_ae.VideoDecoder",
    ),
    "modules.video_unet.VideoUNet": (_SGM + "video_model.VideoUNet", "modules.unet3d.VideoUNet"),
}  # fmt: skip
CLASSES = frozenset(_CLASSES)
TARGETS: Mapping[str, str] = {alias: name for name, aliases in _CLASSES.items() for alias in aliases}

# Options without effect on the result here.
WITHOUT_EFFECT = {
    "VideoDiffusionEngine": {"disable_first_stage_amp", "disable_first_stage_autocast"},
    "VideoUNet": {"spatial_transformer_attn_type", "use_checkpoint", "use_recompute"},
    "FrozenOpenCLIPImagePredictionEmbedder": {"is_trainable"},
    "FrozenOpenCLIPImageEmbedder": {"freeze"},
    "ConcatTimestepEmbedderND": {"is_trainable"},
    "VideoPredictionEmbedderWithEncoder": {"is_trainable", "disable_encoder_amp", "disable_encoder_autocast"},
    "AutoencodingEngine": {"loss", "loss_config", "regularizer_config", "ckpt_path"},
    "AutoencoderKL": {"monitor", "lossconfig", "ckpt_path"},
    "EulerEDMSampler": {"verbose", "device"},
    "LinearPredictionGuider": {"num_frames", "additional_cond_keys"},
    "Denoiser": {"weighting_config"},
    "Encoder": {"attn_type", "resolution"},
    "Decoder": {"attn_type", "resolution"},
    "VideoDecoder": {"attn_type", "resolution"},
}

# Options of the reference's training, for which train.py has flags of its own.
OF_TRAINING = ("sigma_sampler_config", "loss_fn_config")

# Options that the network here has in one form only: the values that mean this form.
_AUTOENCODER = {"double_z": [True], "attn_resolutions": [[]], "dropout": [0.0]}
FIXED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "VideoUNet": {
        "num_classes": ["sequential"],
        "use_linear_in_transformer": [True],
        "extra_ff_mix_layer": [True],
        "use_spatial_context": [True],
        "merge_strategy": ["learned_with_images", "learned"],  # the same for videos
        "video_kernel_size": [[3, 1, 1]],
    },
    "FrozenOpenCLIPImagePredictionEmbedder": {"n_cond_frames": [1], "n_copies": [1]},
    "VideoPredictionEmbedderWithEncoder": {"n_cond_frames": [1], "n_copies": [1], "is_ae": [True]},
    "Encoder": {**_AUTOENCODER, "out_ch": [3]},
    "Decoder": {**_AUTOENCODER, "in_channels": [3]},
    "VideoDecoder": {**_AUTOENCODER, "in_channels": [3], "video_kernel_size": [[3, 1, 1]]},
}

# What the reference writes beside an embedder's target, and the one value that its published files give.
BESIDE_EMBEDDER = {"is_trainable": False, "ucg_rate": 0.0}

VISION_TOWER = {
    "target": "gm.networks.clip.OpenCLIP",
    "params": {"visual": {"target": "gm.networks.clip.VisionTransformer"}},
}

# What sgm's YAML files of SVD leave to its scripts: frames and steps, by the weights that they name, and the sampler.
SCRIPTS_NUMBERS = {"": (14, 25), "svd_xt": (25, 30)}
SAMPLER = {
    "target": "gm.sampling.samplers.EulerEDMSampler",
    "params": {
        "discretization_config": {"target": "gm.sampling.schedules.EDMDiscretization", "params": {"sigma_max": 700.0}},
        "guider_config": {"target": "modules.video_guidance.LinearPredictionGuider"},
    },
}

logger = logging.getLogger(__name__)


def our_target(target: str) -> str:
    """The path, in this project, of a class that a YAML file names."""
    return TARGETS.get(target, target)


def our_options(target: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """A target's options without those of the reference that change nothing.

    Raises:
        UserError: an option has a value that this project's network does not have.
    """
    name = our_target(target).rpartition(".")[2]
    options = {key: value for key, value in options.items() if key not in WITHOUT_EFFECT.get(name, ())}
    for key, accepted in FIXED.get(name, {}).items():
        given = options.pop(key, accepted[0])
        if given not in accepted:
            values = " or ".join(map(str, accepted))
            raise UserError(f"the configuration asks {name} for {key}={given}; this network has {key}={values} only")
    if name == "VideoDiffusionEngine":
        _drop_training(options)
        if target.startswith("sgm."):
            _add_what_scripts_set(options)
    elif name == "GeneralConditioner" and "emb_models" in options:
        options["embedders"] = [_embedder(node) for node in options.pop("emb_models")]
    elif name == "FrozenOpenCLIPImageEmbedder" and "model_config" not in options:
        options.setdefault("model", VISION_TOWER)
    elif name == "AutoencoderKL" and "ddconfig" in options:
        options.update(_autoencoder(options.pop("ddconfig")))
    return options


def _drop_training(options: Dict[str, Any]) -> None:
    for key in OF_TRAINING:
        if options.pop(key, None) is not None:
            logger.warning("the configuration's %s is not used: training's settings are flags of train.py", key)


def _add_what_scripts_set(options: Dict[str, Any]) -> None:
    """Frames, steps and sampler, where an engine of sgm's YAML does not have them."""
    stem = PurePath(options.pop("ckpt_path", None) or "").stem
    frames, steps = next(SCRIPTS_NUMBERS[key] for key in sorted(SCRIPTS_NUMBERS, reverse=True) if stem.startswith(key))
    options.setdefault("num_frames", frames)
    sampler = dict(options.get("sampler_config") or SAMPLER)
    sampler["params"] = {"num_steps": steps, **(sampler.get("params") or {})}
    options["sampler_config"] = sampler


def _embedder(node: Any) -> Any:
    """The reference keeps some of an embedder's options beside `target`; here they are arguments."""
    if not isinstance(node, Mapping):
        return node
    beside = {key: value for key, value in node.items() if key not in ("target", "params")}
    for key, value in BESIDE_EMBEDDER.items():
        if beside.pop(key, value) != value:
            raise UserError(f"the configuration asks an embedder for {key}={node[key]}; only {value} is supported")
    return {"target": node.get("target"), "params": {**(node.get("params") or {}), **beside}}


def _autoencoder(ddconfig: Mapping[str, Any]) -> Dict[str, Any]:
    """An encoder and a decoder from the options that they share."""
    path = "gm.modules.diffusionmodules.model."
    return {name.lower(): {"target": path + name, "params": dict(ddconfig)} for name in ("Encoder", "Decoder")}
