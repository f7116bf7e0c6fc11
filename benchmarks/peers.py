"""diffusers' networks with the weights of a published file, memory-mapped."""

from pathlib import Path
from typing import ContextManager, Dict, Mapping, Tuple
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.embeddings import Timesteps
from diffusers.models.unets.unet_3d_blocks import MidBlockTemporalDecoder
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from gm.config.factory import load_config
from gm.weights.checkpoint import open_checkpoint
from gm.weights.diffusers_names import EMBEDDER_VAE_PREFIX, FIRST_STAGE_PREFIX, UNET_PREFIX, VISUAL_PREFIX
from gm.weights.tensor_source import decode
from svd_tools.conversion.diffusers_config import NORM_GROUPS, SCHEDULER, templates
from svd_tools.conversion.diffusers_layout import to_diffusers
from svd_tools.conversion.lazy_tensor import LazyTensor, from_source

VIT_H_14 = {
    "width": 1280,
    "mlp_width": 5120,
    "output_dim": 1024,
    "layers": 32,
    "heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
RESIZE = pipeline_stable_video_diffusion._resize_with_antialiasing


def load_unet(checkpoint: Path) -> UNetSpatioTemporalConditionModel:
    """The full-size UNet."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
    unet.load_state_dict(state_of(checkpoint), assign=True)
    return unet.eval()


def unet_of_config(config: Path, checkpoint: Path) -> UNetSpatioTemporalConditionModel:
    """The UNet of one of this project's YAML files, with weights of its own to train.

    As in this project it takes the embedded conditioning vector, not the numbers that it is made of.
    """
    options = load_config(config)["model"]["params"]["network_config"]["params"]
    widths = [options["model_channels"] * multiple for multiple in options["channel_mult"]]
    kinds = ["CrossAttn" if 2**level in options["attention_resolutions"] else "" for level in range(len(widths))]
    vector = options["adm_in_channels"]
    with _norm_groups(options.get("num_groups", NORM_GROUPS)):
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
    unet.load_state_dict({name: tensor.clone() for name, tensor in state_of(checkpoint).items()})
    return unet


def load_vae(checkpoint: Path) -> AutoencoderKLTemporalDecoder:
    """The full-size autoencoder: the conditioner's encoder and the temporal decoder."""
    with torch.device("meta"):
        vae = empty_vae()
    vae.load_state_dict(state_of(checkpoint, (FIRST_STAGE_PREFIX, EMBEDDER_VAE_PREFIX)), assign=True)
    return vae.eval()


def empty_vae() -> AutoencoderKLTemporalDecoder:
    """The full-size autoencoder without its weights."""
    return AutoencoderKLTemporalDecoder(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2
    )


def load_image_encoder(checkpoint: Path, options: Mapping[str, int] = VIT_H_14) -> CLIPVisionModelWithProjection:
    """CLIP's image tower in fp32, with the options of :class:`gm.networks.clip.VisionTransformer`."""
    clip = empty_image_encoder(options)
    state = state_of(checkpoint, (VISUAL_PREFIX,))
    missing, extra = clip.load_state_dict(state, strict=False, assign=True)
    assert not extra and all(name.endswith("position_ids") for name in missing)
    return clip.float().eval()  # assigned as they are, the tensors of an fp16 file are fp16


def empty_image_encoder(options: Mapping[str, int] = VIT_H_14) -> CLIPVisionModelWithProjection:
    """The same with weights of its own."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=options["width"],
            intermediate_size=options["mlp_width"],
            projection_dim=options["output_dim"],
            num_hidden_layers=options["layers"],
            num_attention_heads=options["heads"],
            image_size=options["image_size"],
            patch_size=options["patch_size"],
            hidden_act="gelu",
        )
    )


def pipeline_of_config(config: Path, checkpoint: Path) -> StableVideoDiffusionPipeline:
    """The whole pipeline of one of this project's YAML files, with the published Euler sampler."""
    params = load_config(config)["model"]["params"]
    first_stage = params["first_stage_config"]["params"]["decoder_config"]["params"]
    clip = params["conditioner_config"]["params"]["embedders"][0]["params"]["open_clip_embedding_config"]
    vision = clip["params"]["model_config"]["params"]["visual_config"]["params"]
    widths = [first_stage["ch"] * mult for mult in first_stage["ch_mult"]]
    with _norm_groups(first_stage["num_groups"]):
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            layers_per_block=first_stage["num_res_blocks"],
            latent_channels=first_stage["z_channels"],
            scaling_factor=params["scale_factor"],
        )
        # diffusers gives the middle as many layers as a level; the published model has two in either.
        vae.decoder.mid_block = MidBlockTemporalDecoder(widths[-1], widths[-1], widths[-1], num_layers=2)
    vae.load_state_dict(state_of(checkpoint, (FIRST_STAGE_PREFIX, EMBEDDER_VAE_PREFIX)))
    encoder = load_image_encoder(checkpoint, vision)
    unet = unet_of_config(config, checkpoint)
    unet.add_time_proj = Timesteps(unet.config.addition_time_embed_dim, True, downscale_freq_shift=0)
    scheduler = EulerDiscreteScheduler.from_config(templates()[SCHEDULER])
    size = vision["image_size"]
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    pipeline = StableVideoDiffusionPipeline(vae.eval(), encoder.eval(), unet.eval(), scheduler, processor)
    pipeline.set_progress_bar_config(disable=True)
    # It resizes to 224 pixels, whatever the tower takes.
    pipeline_stable_video_diffusion._resize_with_antialiasing = lambda image, _: RESIZE(image, (size, size))
    return pipeline


def published_pipeline(checkpoint: Path) -> StableVideoDiffusionPipeline:
    """The whole pipeline at full size, with the published Euler sampler."""
    networks = load_vae(checkpoint), load_image_encoder(checkpoint), load_unet(checkpoint)
    size = VIT_H_14["image_size"]
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    scheduler = EulerDiscreteScheduler.from_config(templates()[SCHEDULER])
    pipeline = StableVideoDiffusionPipeline(*networks, scheduler, processor)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _norm_groups(groups: int) -> ContextManager:
    """Inside, group norms have so many groups, whatever diffusers, where the number is fixed, asks for."""
    group_norm = torch.nn.GroupNorm
    return patch("torch.nn.GroupNorm", lambda num_groups, *args, **options: group_norm(groups, *args, **options))


def state_of(checkpoint: Path, prefixes: Tuple[str, ...] = (UNET_PREFIX,)) -> Dict[str, torch.Tensor]:
    """diffusers' name -> tensor, on the file's memory map where the layouts agree."""
    with open_checkpoint(checkpoint) as source:
        published = from_source(source, checkpoint.name)
        tensors = to_diffusers({name: tensor for name, tensor in published.items() if name.startswith(prefixes)})
        return {name.partition("/")[2]: _as_torch(tensor) for name, tensor in tensors.items()}


def _as_torch(tensor: LazyTensor) -> torch.Tensor:
    return torch.from_numpy(decode(tensor.load(), tensor.info, tensor.origin))
