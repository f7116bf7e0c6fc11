"""Each network against PyTorch's with the same weights: max abs error within 1e-4 of the output's max, fp32."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.backend import kernel_fusion
from gm.backend.operators import inference
from gm.backend.runtime import GRAPH_MODE, PYNATIVE_MODE
from tests.gm.backend import mint_on_cpu
from tests.parity.peers import relative_error

TOLERANCE = 1e-4


@pytest.fixture(params=[PYNATIVE_MODE, GRAPH_MODE], ids=["pynative", "graph"])
def mode(request):
    before = ms.get_context("mode")
    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=before)


def unet_inputs(batch, frames, height, width, tokens=1):
    rng = np.random.default_rng(frames)
    x = rng.standard_normal((batch * frames, 8, height, width)).astype(np.float32)
    c_noise = rng.standard_normal(batch).astype(np.float32)
    context = rng.standard_normal((batch, tokens, 48)).astype(np.float32)
    numbers = np.array([[6.0, 127.0, 0.02], [24.0, 3.0, 0.1]], np.float32)[:batch]
    return x, c_noise, context, numbers


def torch_unet(peer, x, c_noise, context, numbers):
    batch = len(numbers)
    x = torch.from_numpy(x).reshape(batch, -1, *x.shape[1:])
    with torch.no_grad():
        out = peer.unet(x, torch.from_numpy(c_noise), torch.from_numpy(context), torch.from_numpy(numbers))
    return out.sample.flatten(0, 1).numpy()


def our_unet(engine, *inputs):
    return engine.network.load()(*our_inputs(engine, *inputs)).asnumpy()


def our_inputs(engine, x, c_noise, context, numbers):
    conditioner = engine.conditioner.load()
    vector = np.concatenate(
        [conditioner.embedders[i](Tensor(numbers[:, k])).asnumpy() for k, i in enumerate((1, 2, 4))], axis=1
    )
    return Tensor(x), Tensor(c_noise), Tensor(context), Tensor(vector)


SHAPES = [(1, 1, 8, 8), (1, 14, 8, 16), (1, 25, 8, 8), (2, 3, 16, 8)]  # batch, frames, latent height and width


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unet(peer, engine, shape):
    inputs = unet_inputs(*shape)
    assert relative_error(our_unet(engine, *inputs), torch_unet(peer, *inputs)) <= TOLERANCE


def test_unet_in_graph_mode(peer, engine, mode):
    inputs = unet_inputs(2, 4, 8, 16)
    assert relative_error(our_unet(engine, *inputs), torch_unet(peer, *inputs)) <= TOLERANCE


@pytest.mark.parametrize("compiled", [False, True], ids=["one by one", "compiled"])
def test_unet_by_this_processor_s_operators(peer, engine, compiled):
    inputs = unet_inputs(2, 4, 8, 16)
    with inference(compiled):
        result = our_unet(engine, *inputs)
    assert relative_error(result, torch_unet(peer, *inputs)) <= TOLERANCE


@pytest.fixture
def as_on_ascend(monkeypatch):
    mint_on_cpu.run_as_on_ascend(monkeypatch)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["single", "compiled"])
def test_networks_by_ascend_s_operators(peer, engine, as_on_ascend, compiled):
    """All but CANN's own kernels: small functions with their signatures stand in their places."""
    inputs = unet_inputs(2, 4, 8, 16)
    with inference(compiled):
        result = our_unet(engine, *inputs)
    assert relative_error(result, torch_unet(peer, *inputs)) <= TOLERANCE
    for test, shape in ((test_temporal_decoder, (3, 12, 8)), (test_vae_encoder, (1, 96, 40)), (test_clip_tower, ())):
        with inference(compiled):
            test(peer, engine, *shape)


@pytest.mark.slow
def test_unet_of_fused_kernels(peer, engine):
    """As large UNets are compiled on CPU by default."""
    before = ms.get_context("mode")
    ms.set_context(mode=GRAPH_MODE)
    try:
        if kernel_fusion.obstacle():
            pytest.skip(kernel_fusion.obstacle())
        inputs = unet_inputs(2, 3, 8, 24)
        with inference(compiled=True, fuse_kernels=True):
            fused = our_unet(engine, *inputs)
    finally:
        ms.set_context(mode=before)
    assert relative_error(fused, torch_unet(peer, *inputs)) <= TOLERANCE


def test_unet_from_its_own_deep_features(engine):
    """Of the same inputs they give the same result; and little of the network is evaluated then."""
    net = engine.network.load()
    inputs = our_inputs(engine, *unet_inputs(2, 3, 8, 8))
    out, deep = net.with_deep_features(*inputs)
    assert np.array_equal(net(*inputs).asnumpy(), out.asnumpy())
    assert relative_error(net.from_deep_features(deep, *inputs).asnumpy(), out.asnumpy()) <= 1e-6
    other = net.from_deep_features(deep, inputs[0][::-1], *inputs[1:])
    assert relative_error(other.asnumpy(), out.asnumpy()) > 1e-2


def test_unet_with_several_context_tokens(engine):
    """Several equal tokens weigh the same as one: the general cross-attention agrees with the one-token shortcut."""
    x, c_noise, context, numbers = unet_inputs(2, 3, 8, 8)
    one = our_unet(engine, x, c_noise, context, numbers)
    three = our_unet(engine, x, c_noise, context.repeat(3, axis=1), numbers)
    assert relative_error(three, one) <= TOLERANCE


@pytest.mark.parametrize("name", ["context", "numbers", "c_noise", "frames"])
def test_every_input_of_the_unet_matters(engine, name):
    x, c_noise, context, numbers = unet_inputs(1, 4, 8, 8)
    before = our_unet(engine, x, c_noise, context, numbers)
    changed = {
        "context": (x, c_noise, context + 1, numbers),
        "numbers": (x, c_noise, context, numbers + 1),
        "c_noise": (x, c_noise + 1, context, numbers),
        "frames": (np.concatenate([x[:3], x[3:] + 1]), c_noise, context, numbers),
    }[name]
    after = our_unet(engine, *changed)
    assert np.abs(after[0] - before[0]).max() > 1e-3  # the first frame too: frames see each other


@pytest.mark.parametrize("frames, height, width", [(1, 8, 8), (14, 8, 8), (25, 4, 8), (3, 12, 8)])
def test_temporal_decoder(peer, engine, frames, height, width):
    z = np.random.default_rng(0).standard_normal((frames, 4, height, width)).astype(np.float32)
    with torch.no_grad():
        theirs = peer.vae.decode(torch.from_numpy(z), num_frames=frames).sample.numpy()
    ours = engine.first_stage.load().decode(Tensor(z[None])).asnumpy()[0]
    assert relative_error(ours, theirs) <= TOLERANCE


def test_chunked_decoding_with_a_remainder(peer, engine):
    latents = np.random.default_rng(0).standard_normal((1, 7, 4, 8, 8)).astype(np.float32)
    z = torch.from_numpy(latents[0] / np.float32(engine.scale_factor))
    with torch.no_grad():
        chunks = [peer.vae.decode(z[i : i + 3], num_frames=len(z[i : i + 3])).sample for i in (0, 3, 6)]
    ours = engine.decode(latents, chunk_size=3)
    assert relative_error(ours[0], torch.cat(chunks).numpy()) <= TOLERANCE


@pytest.mark.parametrize("batch, height, width", [(1, 64, 64), (2, 64, 128), (1, 96, 40)])
def test_vae_encoder(peer, engine, batch, height, width):
    pixels = np.random.default_rng(1).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
    with torch.no_grad():
        theirs = peer.vae.encode(torch.from_numpy(pixels)).latent_dist.mode().numpy()
    ours = engine.conditioner.load().embedders[3](Tensor(pixels)).asnumpy()
    assert relative_error(ours, theirs) <= TOLERANCE


def test_clip_tower(peer, engine):
    pixels = np.random.default_rng(2).standard_normal((3, 3, 56, 56)).astype(np.float32)
    with torch.no_grad():
        theirs = peer.image_encoder(torch.from_numpy(pixels)).image_embeds.numpy()
    ours = engine.conditioner.load().embedders[0](Tensor(pixels)).asnumpy()
    assert relative_error(ours[:, 0], theirs) <= TOLERANCE
