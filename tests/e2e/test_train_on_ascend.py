"""Training by the operators for Ascend, in half precision, with functions on CPU in the place of CANN's kernels."""

import pytest

from gm.backend.ascend import AscendOperators
from tests.e2e.training import checkpoints, largest_change, losses
from tests.gm.backend import mint_on_cpu


def test_half_precision_learns_as_fp32(place, monkeypatch):
    """What is frozen is kept in half precision; the loss scale finds its place; the losses are fp32's."""
    whole = place.train(place.folder / "fp32", "--train.ema_decay=0", epochs=1)
    mint_on_cpu.run_as_on_ascend(monkeypatch)
    monkeypatch.setattr("gm.backend.training.TrainingOperators", lambda compiled, fused: AscendOperators())
    half = place.train(place.folder / "fp16", "--train.ema_decay=0", "--train.amp_level=O2", epochs=1)
    assert losses(half) == pytest.approx(losses(whole), rel=1e-2) and len(losses(half)) == 4
    moved = [largest_change(place.checkpoint, checkpoints(run)[-1] / "state.safetensors") for run in (whole, half)]
    assert moved[1] == pytest.approx(moved[0], rel=0.05)
