"""Stable Diffusion's networks against diffusers' and transformers', within 1e-4 of the output's largest value."""

import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.backend.operators import inference
from gm.config.factory import load_model
from gm.networks.prompt import Prompt, token_blocks
from tests.parity.peers import relative_error

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def text_engine(stable_diffusion):
    engine = load_model(stable_diffusion.config)
    engine.attach(stable_diffusion.checkpoint)
    return engine


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_unet(stable_diffusion, text_engine, compiled):
    peer, engine = stable_diffusion, text_engine
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 4, 8, 16)).astype(np.float32)
    width = engine.network.shapes()["model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]
    context = rng.standard_normal((2, 77, width)).astype(np.float32)
    index, inputs, extra = np.array([17.0, 801.25], np.float32), [], {}
    if peer.text_encoder_2 is not None:
        pooled, sizes = rng.standard_normal((2, 24)).astype(np.float32), np.array([[64, 128, 0, 8, 64, 128]] * 2)
        extra = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes.astype(np.float32))}
        embed = engine.conditioner.load().embedders[2]
        inputs = [np.concatenate([pooled, embed(Tensor(sizes.astype(np.float32))).asnumpy()], axis=1)]
    with torch.no_grad():
        theirs = peer.unet(*map(torch.from_numpy, (x, index, context)), added_cond_kwargs=extra).sample.numpy()
    with inference(compiled):
        ours = engine.network.load()(*map(Tensor, (x, index, context, *inputs))).asnumpy()
    assert relative_error(ours, theirs) <= TOLERANCE


def test_text_towers(stable_diffusion, text_engine):
    peer, engine, xl = stable_diffusion, text_engine, stable_diffusion.text_encoder_2 is not None
    prompt = Prompt("a photograph of an astronaut riding a horse, 4k")
    conditioner = engine.conditioner.load()
    ours = [embedder.embed(prompt) for embedder in conditioner.embedders[:2]]
    tokens = [torch.from_numpy(token_blocks(prompt, embedder.pad)[0]).long() for embedder in conditioner.embedders[:2]]
    with torch.no_grad():
        first = peer.text_encoder(tokens[0], output_hidden_states=True)
        wanted = first.hidden_states[-2] if xl else first.last_hidden_state
        assert relative_error(ours[0]["crossattn"], wanted.numpy()) <= TOLERANCE
        if xl:
            second = peer.text_encoder_2(tokens[1], output_hidden_states=True)
            assert relative_error(ours[1]["crossattn"], second.hidden_states[-2].numpy()) <= TOLERANCE
            assert relative_error(ours[1]["vector"], second.text_embeds.numpy()) <= TOLERANCE


def test_autoencoder(stable_diffusion, text_engine):
    peer, engine = stable_diffusion, text_engine
    z = np.random.default_rng(2).standard_normal((2, 4, 8, 16)).astype(np.float32)
    with torch.no_grad():
        decoded = peer.vae.decode(torch.from_numpy(z)).sample.numpy()
    assert relative_error(engine.first_stage.load().decode(Tensor(z)).asnumpy(), decoded) <= TOLERANCE
