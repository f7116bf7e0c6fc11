"""Stable Diffusion's LoRA files in kohya's and diffusers' layouts, merged on loading."""

from pathlib import Path

import numpy as np
import pytest

from gm.config.factory import load_model
from gm.options import PictureOptions
from gm.pipeline import load_weights
from gm.weights.checkpoint import save_safetensors
from svd_tools.convert_lora import main as convert
from tests.svd_tools.small_model import read_all, save_random

SMALL = Path(__file__).parents[2] / "parity"
BLOCK = "input_blocks.4.1.transformer_blocks.0."
UNET, FIRST = "model.diffusion_model.", "conditioner.embedders.0.transformer.text_model.encoder.layers.0."
SECOND = "conditioner.embedders.1.model.transformer.resblocks.1."
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
# Published tensor, and the rows of it that are adapted -> the layer as kohya's scripts and as diffusers call it.
XL = {
    (UNET + BLOCK + "attn1.to_q.weight", None): ("lora_unet_" + BLOCK + "attn1.to_q", "unet." + ATTENTION),
    (UNET + "input_blocks.1.0.in_layers.2.weight", None): (
        "lora_unet_down_blocks.0.resnets.0.conv1", "unet.down_blocks.0.resnets.0.conv1",
    ),
    (FIRST + "self_attn.q_proj.weight", None): (
        "lora_te1_text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    ),
    (SECOND + "attn.in_proj_weight", (40, 80)): (
        "lora_te2_text_model.encoder.layers.1.self_attn.k_proj",
        "text_encoder_2.text_model.encoder.layers.1.self_attn.k_proj",
    ),
    (SECOND + "mlp.c_fc.weight", None): (
        "lora_te2_text_model.encoder.layers.1.mlp.fc1", "text_encoder_2.text_model.encoder.layers.1.mlp.fc1",
    ),
}  # fmt: skip
SD_1_5 = {
    (UNET + "input_blocks.1.1.proj_in.weight", None): (
        "lora_unet_down_blocks.0.attentions.0.proj_in", "unet.down_blocks.0.attentions.0.proj_in",
    ),
    ("cond_stage_model.transformer.text_model.encoder.layers.2.mlp.fc2.weight", None): (
        "lora_te_text_model.encoder.layers.2.mlp.fc2", "text_encoder.text_model.encoder.layers.2.mlp.fc2",
    ),
}  # fmt: skip
RANK, ALPHA, SCALE = 2, 3.0, 0.5


def make_lora(path, weights, layers, kohya):
    """Writes a LoRA; gives what it should make of each tensor."""
    rng, tensors, expected = np.random.default_rng(1), {}, {}
    for (name, rows), (theirs, diffusers) in layers.items():
        target = weights[name] if rows is None else weights[name][slice(*rows)]
        a = rng.standard_normal((RANK, *target.shape[1:])).astype(np.float32)
        b = rng.standard_normal((len(target), RANK) + (1,) * (target.ndim - 2)).astype(np.float32)
        delta = (b.reshape(len(b), -1).astype(np.float64) @ a.reshape(RANK, -1)).reshape(target.shape)
        merged = weights[name].astype(np.float64)
        part = merged if rows is None else merged[slice(*rows)]
        part += SCALE * (ALPHA / RANK if kohya else 1) * delta
        expected[name] = merged
        if kohya:
            stem = theirs.replace(".", "_")
            tensors.update({f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b})
            tensors[f"{stem}.alpha"] = np.array(ALPHA, np.float32)
        else:
            tensors.update({f"{diffusers}.lora_A.weight": a, f"{diffusers}.lora_B.weight": b})
    save_safetensors(path, tensors)
    return expected


@pytest.mark.parametrize("name, layers", [("sd_xl_base", XL), ("sd_1_5", SD_1_5)])
@pytest.mark.parametrize("kohya", [True, False], ids=["kohya", "diffusers"])
def test_a_lora_is_merged_into_the_unet_and_the_text_encoders(tmp_path, name, layers, kohya):
    config = SMALL / f"{name}_small.yaml"
    weights = save_random(tmp_path / "w.safetensors", config)
    expected = make_lora(tmp_path / "lora.safetensors", weights, layers, kohya)
    engine = load_model(config)
    options = PictureOptions(lora=str(tmp_path / "lora.safetensors"), lora_scale=SCALE)
    load_weights(engine, tmp_path / "w.safetensors", options, "--SD.")
    parts = (engine.network, engine.conditioner)
    loaded = {part.prefix + key: p for part in parts for key, p in part.net.parameters_and_names()}
    for key, parameter in loaded.items():
        np.testing.assert_allclose(parameter.asnumpy(), expected.get(key, weights[key]), atol=1e-5, err_msg=key)
    if kohya:
        flags = [f"--lora={tmp_path / 'lora.safetensors'}", f"--config={config}", "--to=diffusers"]
        convert([*flags, f"--out={tmp_path / 'theirs.safetensors'}"])
        tensors = read_all(tmp_path / "theirs.safetensors")
        for (_, _), (_, diffusers) in layers.items():
            assert tensors[f"{diffusers}.lora_A.weight"].ndim == tensors[f"{diffusers}.lora_B.weight"].ndim
