"""The pipeline's choice of a mode."""

import pytest

from gm.backend.runtime import GRAPH_MODE, PYNATIVE_MODE
from modules import pipeline
from modules.pipeline import SVDPipeline


@pytest.mark.parametrize(("device", "mode"), [("CPU", PYNATIVE_MODE), ("Ascend", GRAPH_MODE)])
def test_a_card_compiles_and_a_cpu_does_not(monkeypatch, device, mode):
    monkeypatch.setattr(pipeline, "_device", lambda: device)
    assert object.__new__(SVDPipeline).preferred_mode == mode
