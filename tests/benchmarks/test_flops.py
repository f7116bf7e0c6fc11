"""The count of the arithmetic against PyTorch's own, on diffusers' network without memory for its values."""

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import Clip, unet_flops
from gm.weights.names import expected_parameters
from tests.e2e.training import PROJECT

CLIPS = [Clip(2, 14, 16, 16), Clip(1, 5, 72, 128), Clip(2, 1, 8, 24)]


@pytest.fixture(scope="module")
def shapes():
    return expected_parameters(PROJECT / "configs/svd.yaml")


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_the_count_is_pytorchs(shapes, clip):
    with FakeTensorMode():
        unet = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
        unet.set_attn_processor(AttnProcessor())  # in plain products, which the counter knows
        x = torch.empty(clip.batch, clip.frames, 8, clip.height, clip.width)
        context, numbers = torch.empty(clip.batch, 1, 1024), torch.empty(clip.batch, 3)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(x, torch.empty(clip.batch), context, numbers)
    assert unet_flops(shapes, clip, one_token_shortcut=False) == pytest.approx(counter.get_total_flops(), rel=1e-4)


def test_the_shortcut_saves_most_of_cross_attention(shapes):
    clip = CLIPS[0]
    saved = 1 - unet_flops(shapes, clip) / unet_flops(shapes, clip, one_token_shortcut=False)
    assert 0.02 < saved < 0.1
