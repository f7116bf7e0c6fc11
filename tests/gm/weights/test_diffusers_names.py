"""The map between published and diffusers names is total, one to one, and of the right shapes."""

import pytest

from gm.weights.diffusers_names import (
    CONV_1X1,
    TRANSPOSED,
    Place,
    UnknownName,
    diffusers_places,
    is_unused,
    placeless,
)
from svd_tools.conversion.diffusers_layout import diffusers_shapes, full_names
from tests import reference


def test_the_published_names_map_onto_exactly_the_diffusers_names_and_shapes():
    assert diffusers_shapes(reference.published()) == reference.diffusers()


def test_every_published_name_has_one_place_or_is_known_to_have_none():
    published = reference.published()
    places = diffusers_places(published)
    names = [name for place in places.values() for name in full_names(place)]
    assert len(names) == len(set(names)) == 2322
    without = [name for name in published if name not in places]
    assert len(without) == 252 and set(without) == placeless(published)
    assert sum(map(is_unused, published)) == 146
    text = [name for name in without if name.startswith("conditioner.embedders.0.")]
    assert len(text) == 6 and all(map(is_unused, text))


def test_examples():
    places = diffusers_places(reference.published())
    unet = "model.diffusion_model."
    assert places[unet + "input_blocks.4.1.time_stack.0.ff_in.net.2.bias"] == Place(
        "unet", ("down_blocks.1.attentions.0.temporal_transformer_blocks.0.ff_in.net.2.bias",)
    )
    assert places[unet + "output_blocks.2.1.conv.weight"] == Place("unet", ("up_blocks.0.upsamplers.0.conv.weight",))
    assert places[unet + "output_blocks.11.0.time_stack.emb_layers.1.weight"] == Place(
        "unet", ("up_blocks.3.resnets.2.temporal_res_block.time_emb_proj.weight",)
    )
    assert places["first_stage_model.decoder.up.3.block.0.mix_factor"] == Place(
        "vae", ("decoder.up_blocks.0.resnets.0.time_mixer.mix_factor",)
    )
    assert places["conditioner.embedders.3.encoder.encoder.mid.attn_1.q.weight"] == Place(
        "vae", ("encoder.mid_block.attentions.0.to_q.weight",), CONV_1X1
    )
    visual = "conditioner.embedders.0.open_clip.model.visual."
    assert places[visual + "proj"] == Place("image_encoder", ("visual_projection.weight",), TRANSPOSED)
    layer = "vision_model.encoder.layers.7.self_attn."
    assert places[visual + "transformer.resblocks.7.attn.in_proj_bias"] == Place(
        "image_encoder", (f"{layer}q_proj.bias", f"{layer}k_proj.bias", f"{layer}v_proj.bias")
    )


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.transformer.weight",
        "model.diffusion_model.controlnet.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.5.weight",
        "conditioner.embedders.0.open_clip.model.visual.attn_pool.probe",
        "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.0.gate.weight",
    ],
)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UnknownName):
        diffusers_places([name])
