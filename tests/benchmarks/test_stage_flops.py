"""The count of the arithmetic against PyTorch's own, on diffusers' and transformers' networks without memory."""

from contextlib import contextmanager

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers
from benchmarks.stage_flops import decoder_flops, encoder_flops
from gm.weights.names import expected_parameters
from tests.e2e.training import PROJECT


@pytest.fixture(scope="module")
def shapes():
    return expected_parameters(PROJECT / "configs/svd.yaml")


@contextmanager
def counting():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        yield counter


def vae():
    vae = peers.empty_vae()
    vae.set_attn_processor(AttnProcessor())  # in plain products, which the counter knows
    return vae


@pytest.mark.parametrize("clip", [(14, 32, 32), (3, 72, 128)])
def test_the_decoder_s_count_is_pytorchs(shapes, clip):
    frames, height, width = clip
    with FakeTensorMode(), counting() as counter:
        vae().decode(torch.empty(frames, 4, height, width), frames)
    assert decoder_flops(shapes, *clip) == pytest.approx(counter.get_total_flops(), rel=1e-4)


def test_the_encoders_count_is_pytorchs(shapes):
    with FakeTensorMode(), counting() as counter:
        vae().encode(torch.empty(1, 3, 256, 320))
        clip = peers.empty_image_encoder()
        clip.set_attn_implementation("eager")  # in plain products, too
        clip(torch.empty(1, 3, 224, 224))
    assert encoder_flops(shapes, 32, 40) == pytest.approx(counter.get_total_flops(), rel=1e-3)
