"""The reference toolkit's own YAML defines the same model here, and what this model cannot be is refused."""

import logging
from pathlib import Path

import pytest

from gm.config.factory import find_class, instantiate, load_config, load_model
from gm.config.targets import TARGETS, our_options, our_target
from gm.errors import UserError
from gm.sampling.samplers import EulerEDMSampler
from tests import reference

REFERENCE = Path(__file__).with_name("reference_svd.yaml")
SVD = Path(__file__).parents[3] / "configs" / "svd.yaml"


@pytest.fixture
def nodes():
    """The parts of the reference's YAML by name."""
    return load_config(REFERENCE)["model"]["params"]


def test_the_same_parameters():
    assert load_model(REFERENCE).parameter_shapes() == reference.published()


def test_the_same_sampling(nodes):
    theirs, ours = load_model(REFERENCE), load_model(SVD)
    assert type(theirs.sampler) is type(ours.sampler) is EulerEDMSampler
    assert theirs.sampler.num_steps == ours.sampler.num_steps == 25
    for part in ("discretization", "guider"):
        assert vars(getattr(theirs.sampler, part)) == vars(getattr(ours.sampler, part))
    assert theirs.scale_factor == ours.scale_factor and theirs.num_frames == 14


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_stands_for_a_class(target):
    assert isinstance(find_class(our_target(target)), type)


def test_its_later_sampler_paths(nodes):
    sampler = nodes["sampler_config"]
    sampler["target"] = "modules.diffusionmodules.sampler.EulerEDMSampler"
    sampler["params"]["guider_config"]["target"] = "modules.diffusionmodules.guiders.LinearPredictionGuider"
    built = instantiate(sampler)
    assert (built.guider.min_scale, built.guider.max_scale, built.discretization.sigma_max) == (1.0, 2.5, 700.0)


def test_its_options_for_training_are_dropped_with_a_warning(caplog):
    options = {"scale_factor": 1.0, "sigma_sampler_config": {"target": "x"}, "loss_fn_config": None}
    with caplog.at_level(logging.WARNING):
        assert our_options("models.diffusion.VideoDiffusionEngine", options) == {"scale_factor": 1.0}
    assert len(caplog.records) == 1 and "sigma_sampler_config is not used" in caplog.text
    assert options["sigma_sampler_config"]  # the caller's dictionary stays


def test_both_names_of_the_blend_for_videos(nodes):
    nodes["network_config"]["params"]["merge_strategy"] = "learned"
    assert instantiate(small(nodes["network_config"])) is not None


def small(network):
    network["params"].update(model_channels=32, channel_mult=[1], num_res_blocks=1, attention_resolutions=[1])
    network["params"].update(num_head_channels=32, context_dim=8, adm_in_channels=8)
    return network


@pytest.mark.parametrize(
    ("part", "option", "value", "words"),
    [
        ("network_config", "merge_strategy", "fixed", "merge_strategy=learned_with_images or learned only"),
        ("network_config", "num_classes", None, "num_classes=sequential only"),
        ("network_config", "video_kernel_size", 3, "video_kernel_size=[3, 1, 1] only"),
        ("network_config", "extra_ff_mix_layer", False, "extra_ff_mix_layer=True only"),
        ("network_config", "dropout", 0.1, "has no option dropout"),
        ("network_config", "model_channels", "320", "expected a whole number"),
    ],
)
def test_another_network_is_refused(nodes, part, option, value, words):
    nodes[part]["params"][option] = value
    with pytest.raises(UserError) as error:
        instantiate(nodes[part])
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("is_trainable", True, "is_trainable=True; only False is supported"),
        ("ucg_rate", 0.2, "ucg_rate=0.2; only 0.0 is supported"),
        ("input_key", None, "expected a word"),
        ("colour", "red", "has no option colour"),
        ("target", "gm.modules.embedders.modules.FrozenOpenCLIPEmbedder2", "is not a class of this project"),
        ("target", None, "needs `target: package.module.Class`"),
    ],
)
def test_another_embedder_is_refused(nodes, option, value, words):
    conditioner = nodes["conditioner_config"]
    number = conditioner["params"]["emb_models"][1]
    number[option] = value
    conditioner["params"]["emb_models"] = [number]
    with pytest.raises(UserError) as error:
        instantiate(conditioner)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_no_list_of_embedders(nodes):
    with pytest.raises(UserError, match="expected a list, each item a Cell"):
        instantiate({"target": nodes["conditioner_config"]["target"], "params": {"emb_models": ["clip"]}})


def test_the_autoencoders_differences_are_refused(nodes):
    decoder = nodes["first_stage_config"]["params"]["decoder_config"]
    decoder["params"]["attn_resolutions"] = [32]
    with pytest.raises(UserError, match=r"attn_resolutions=\[32\]; this network has attn_resolutions=\[\] only"):
        instantiate(decoder)
