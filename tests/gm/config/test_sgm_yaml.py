"""sgm's own YAML files of SVD, written anew from their targets and parameters, define the same models here."""

import pytest
import yaml

from gm.config.factory import load_config, load_model
from gm.config.targets import our_options
from gm.sampling.samplers import EulerEDMSampler
from tests import reference

DIFFUSION, ENCODERS = "sgm.modules.diffusionmodules.", "sgm.modules.encoders.modules."
IDENTITY = {"target": "torch.nn.Identity"}
COMMON = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4, "resolution": 256}
COMMON |= {"in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0, "double_z": True}
SCALES = {"svd": (1.0, 2.5), "svd_xt": (1.5, 3.0), "svd_xt_1_1": (1.5, 3.0)}
NAMES = ["svd", "svd_xt", "svd_xt_1_1", "svd_image_decoder", "svd_xt_image_decoder"]


def node(target, **params):
    return {"target": target, "params": params}


def number(key):
    return {"input_key": key, "is_trainable": False, **node(ENCODERS + "ConcatTimestepEmbedderND", outdim=256)}


def autoencoder(kind):
    ddconfig = {**COMMON, "attn_type": "vanilla-xformers"}
    path = f"sgm.models.autoencoder.{kind}"
    return node(path, embed_dim=4, monitor="val/rec_loss", ddconfig=ddconfig, lossconfig=IDENTITY)


def sgm_yaml(name):
    low, high = SCALES[name.removesuffix("_image_decoder")]
    clip = node(ENCODERS + "FrozenOpenCLIPImageEmbedder", freeze=True)
    image = node(
        ENCODERS + "FrozenOpenCLIPImagePredictionEmbedder", n_cond_frames=1, n_copies=1, open_clip_embedding_config=clip
    )
    latent = node(
        ENCODERS + "VideoPredictionEmbedderWithEncoder",
        disable_encoder_autocast=True, n_cond_frames=1, n_copies=1, is_ae=True,
        encoder_config=autoencoder("AutoencoderKLModeOnly"),
    )  # fmt: skip
    embedders = [
        {"input_key": "cond_frames_without_noise", "is_trainable": False, **image},
        number("fps_id"),
        number("motion_bucket_id"),
        {"input_key": "cond_frames", "is_trainable": False, **latent},
        number("cond_aug"),
    ]
    unet = node(
        DIFFUSION + "video_model.VideoUNet",
        adm_in_channels=768, num_classes="sequential", use_checkpoint=True, in_channels=8, out_channels=4,
        model_channels=320, attention_resolutions=[4, 2, 1], num_res_blocks=2, channel_mult=[1, 2, 4, 4],
        num_head_channels=64, use_linear_in_transformer=True, transformer_depth=1, context_dim=1024,
        spatial_transformer_attn_type="softmax-xformers", extra_ff_mix_layer=True, use_spatial_context=True,
        merge_strategy="learned_with_images", video_kernel_size=[3, 1, 1],
    )  # fmt: skip
    video_decoder = node(
        "sgm.modules.autoencoding.temporal_ae.VideoDecoder",
        **COMMON, attn_type="vanilla", video_kernel_size=[3, 1, 1],
    )  # fmt: skip
    first_stage = node(
        "sgm.models.autoencoder.AutoencodingEngine",
        loss_config=IDENTITY, regularizer_config=IDENTITY,
        encoder_config=node(DIFFUSION + "model.Encoder", **COMMON, attn_type="vanilla"), decoder_config=video_decoder,
    )  # fmt: skip
    guider = node(DIFFUSION + "guiders.LinearPredictionGuider", max_scale=high, min_scale=low)
    levels = node(DIFFUSION + "discretizer.EDMDiscretization", sigma_max=700.0)
    sampler = node(DIFFUSION + "sampling.EulerEDMSampler", discretization_config=levels, guider_config=guider)
    scaling = {"target": DIFFUSION + "denoiser_scaling.VScalingWithEDMcNoise"}
    engine = node(
        "sgm.models.diffusion.DiffusionEngine",
        scale_factor=0.18215, disable_first_stage_autocast=True, ckpt_path=f"checkpoints/{name}.safetensors",
        denoiser_config=node(DIFFUSION + "denoiser.Denoiser", scaling_config=scaling),
        network_config=unet, conditioner_config=node("sgm.modules.GeneralConditioner", emb_models=embedders),
        first_stage_config=autoencoder("AutoencoderKL") if "image_decoder" in name else first_stage,
        sampler_config=sampler,
    )  # fmt: skip
    return {"model": engine}


@pytest.fixture
def write(tmp_path):
    def write_yaml(config):
        (tmp_path / "sgm.yaml").write_text(yaml.dump(config))
        return tmp_path / "sgm.yaml"

    return write_yaml


@pytest.mark.parametrize(("name", "tensors"), [("svd", 2446), ("svd_image_decoder", 2322)])
def test_the_right_names(write, name, tensors):
    shapes = load_model(write(sgm_yaml(name))).parameter_shapes()
    published = reference.published()
    assert len(shapes) == tensors and (shapes == published) == (name == "svd")
    assert all(published[key] == shape for key, shape in shapes.items() if not key.startswith("first_stage_model."))


@pytest.mark.parametrize("name", NAMES)
def test_frames_steps_and_guidance(write, name):
    """What the YAML leaves to sgm's script; the networks' nodes are those of the two files above."""
    config = load_config(write(sgm_yaml(name)))
    engine = load_model(write(config))
    frames, steps = (25, 30) if "_xt" in name else (14, 25)
    sampler = engine.sampler
    assert (engine.num_frames, sampler.num_steps) == (frames, steps) and type(sampler) is EulerEDMSampler
    assert (sampler.guider.min_scale, sampler.guider.max_scale) == SCALES[name.removesuffix("_image_decoder")]
    same = sgm_yaml("svd_image_decoder" if "image_decoder" in name else "svd")["model"]["params"]
    for part in ("network_config", "conditioner_config", "first_stage_config", "denoiser_config"):
        assert config["model"]["params"][part] == same[part]


def test_without_a_sampler_svd_s_own_is_taken():
    params = sgm_yaml("svd")["model"]["params"]
    del params["sampler_config"]
    options = our_options("sgm.models.diffusion.DiffusionEngine", params)
    assert options["sampler_config"]["params"]["num_steps"] == 25 and "ckpt_path" not in options
