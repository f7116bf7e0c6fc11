"""What weights and length of a prompt do to the text towers' results."""

import numpy as np
import pytest
from mindspore import Tensor

from gm.networks.clip import OpenCLIPText
from gm.networks.clip_text_model import CLIPTextModel
from gm.networks.conditioner import Conditioning
from gm.networks.prompt import A1111, OFF, Prompt
from gm.networks.text import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder, FrozenOpenCLIPEmbedder2
from gm.networks.tokenizer import END, tokens_of

SMALL = {"width": 32, "layers": 2, "heads": 4, "mlp_width": 64}


@pytest.fixture(scope="module")
def big():
    return FrozenOpenCLIPEmbedder2(OpenCLIPText(**SMALL, output_dim=24))


def test_comfyui_moves_a_token_away_from_the_empty_prompt_s(big):
    plain, empty = big.embed(Prompt("a red cat")), big.embed(Prompt(""))
    weighted = big.embed(Prompt("a (red:1.5) cat"))
    expected = plain["crossattn"].copy()
    at = 1 + tokens_of("a red cat").index(tokens_of("red")[0])
    expected[0, at] = empty["crossattn"][0, at] + 1.5 * (plain["crossattn"][0, at] - empty["crossattn"][0, at])
    np.testing.assert_allclose(weighted["crossattn"], expected, atol=1e-5)
    np.testing.assert_allclose(weighted["vector"], plain["vector"], atol=1e-6)
    off = big.embed(Prompt("a (red:1.5) cat", OFF))
    assert np.abs(off["crossattn"] - plain["crossattn"]).max() > 0.01, "off takes the brackets for text"


def test_a1111_multiplies_and_restores_the_mean(big):
    plain = big.embed(Prompt("a red cat"))["crossattn"]
    weighted = big.embed(Prompt("a (red:1.5) cat", A1111))["crossattn"]
    scaled = plain.copy()
    scaled[0, 1 + tokens_of("a red cat").index(tokens_of("red")[0])] *= 1.5
    np.testing.assert_allclose(weighted, scaled * (plain.mean() / scaled.mean()), rtol=1e-3, atol=1e-5)
    assert weighted.mean() == pytest.approx(plain.mean(), rel=1e-3)


@pytest.mark.parametrize("kind", ["clip", "openclip"])
def test_long_prompts_are_blocks_one_after_the_other(kind):
    if kind == "clip":
        embedder = FrozenCLIPEmbedder(CLIPTextModel(**SMALL))
    else:
        embedder = FrozenOpenCLIPEmbedder(OpenCLIPText(**SMALL))
    long = embedder.embed(Prompt("dog " * 75 + "cat " * 75))["crossattn"]
    blocks = [embedder.embed(Prompt(word * 75))["crossattn"] for word in ("dog ", "cat ")]
    np.testing.assert_allclose(long, np.concatenate(blocks, axis=1), atol=1e-5)


def test_the_text_s_vector_is_the_first_block_s_and_no_prompt_is_zeros(big):
    first, both = big.embed(Prompt("dog " * 75)), big.embed(Prompt("dog " * 75 + "cat"))
    np.testing.assert_allclose(both["vector"], first["vector"], atol=1e-6)
    none = big.embed(None)
    assert none["crossattn"].shape == (1, 77, 32) and none["vector"].shape == (1, 24)
    assert not none["crossattn"].any() and not none["vector"].any()


def test_a_token_does_not_see_its_successors(big):
    tokens = np.full((1, 77), END, np.int32)
    other = tokens.copy()
    other[0, 40:] = 5
    ends = Tensor(np.array([3], np.int32))
    before, after = (big(Tensor(rows), ends)[0].asnumpy() for rows in (tokens, other))
    np.testing.assert_allclose(before[0, :40], after[0, :40], atol=1e-6)
    assert np.abs(before[0, 40:] - after[0, 40:]).max() > 0.01


def test_halves_of_different_lengths_are_joined():
    short, long = (Conditioning(None, np.random.default_rng(n).random((1, n * 77, 8)), None) for n in (2, 3))
    both = short.joined(long)
    assert both.crossattn.shape == (2, 6 * 77, 8) and both.vector is None and both.concat is None
    np.testing.assert_array_equal(both.crossattn[0], np.tile(short.crossattn[0], (3, 1)))
