"""Attention in blocks against the plain formula, and the choice of Ascend's fused operator."""

import numpy as np
import pytest
from mindspore import Tensor, ops

from gm.backend.ascend import PLAIN_ATTENTION, AscendOperators
from gm.backend.host import HostOperators
from gm.backend.operators import Operators
from tests.gm.backend import mint_on_cpu


def plain(q, k, v, bias=0.0):
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v


def qkv(b=2, h=3, n=10, m=7, d=16, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((b, h, length, d)).astype(dtype) for length in (n, m, m)]


@pytest.mark.parametrize("budget", [1 << 26, 7 * 10 * 4 * 2, 7 * 10 * 4, 7 * 4 * 3, 1])
@pytest.mark.parametrize("door", [Operators(), HostOperators()], ids=["own", "host"])
def test_blocks_change_nothing(monkeypatch, door, budget):
    monkeypatch.setattr(Operators, "scores_budget", budget)
    q, k, v = qkv()
    out = door.attention(Tensor(q), Tensor(k), Tensor(v)).asnumpy()
    np.testing.assert_allclose(out, plain(q, k, v), rtol=1e-4, atol=1e-5)
    bias = np.triu(np.full((10, 7), -np.inf, np.float32), 1)
    out = door.attention(*map(Tensor, (q, k, v, bias))).asnumpy()
    np.testing.assert_allclose(out, plain(q, k, v, bias), rtol=1e-4, atol=1e-5)


def test_no_block_of_scores_exceeds_the_budget(monkeypatch):
    sizes = []
    door = Operators()
    whole = door.attention_block
    monkeypatch.setattr(Operators, "scores_budget", 7 * 4 * 3)

    def block(q, k, v, bias):
        sizes.append(q.shape[0] * q.shape[1] * k.shape[1] * 4)
        return whole(q, k, v, bias)

    monkeypatch.setattr(door, "attention_block", block)
    door.attention(*map(Tensor, qkv()))
    assert len(sizes) > 6
    assert max(sizes) <= 7 * 4 * 3


@pytest.mark.parametrize(
    "dtype, plain_wanted, fused", [(np.float16, "0", True), (np.float16, "1", False), (np.float32, "0", False)]
)
def test_ascend_s_fused_attention_takes_half_precision_unless_told_otherwise(monkeypatch, dtype, plain_wanted, fused):
    """Temporal attention has a pixel in each batch entry: 18432 at 1024x576 with both guidance halves."""
    calls = []

    def flash(q, *args, **kwargs):
        calls.append(q.shape)
        return mint_on_cpu.flash_attention_score(q, *args, **kwargs)

    monkeypatch.setenv(PLAIN_ATTENTION, plain_wanted)
    monkeypatch.setattr(ops, "flash_attention_score", flash)
    q, k, v = qkv(b=18432, h=1, n=3, m=3, dtype=dtype)
    out = AscendOperators().attention(Tensor(q), Tensor(k), Tensor(v)).asnumpy()
    np.testing.assert_allclose(out, plain(*(x.astype(np.float32) for x in (q, k, v))), rtol=0.02, atol=0.02)
    assert calls == ([(18432, 1, 3, 16)] if fused else [])


def test_heads_that_the_fused_attention_does_not_take():
    q, k, v = qkv(d=24, dtype=np.float16)
    out = AscendOperators().attention(Tensor(q), Tensor(k), Tensor(v)).asnumpy()
    np.testing.assert_allclose(out, plain(*(x.astype(np.float32) for x in (q, k, v))), rtol=0.02, atol=0.02)
