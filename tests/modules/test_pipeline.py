"""The pipeline's choice of a mode."""

from pathlib import Path

import pytest

from gm.device.runtime import GRAPH_MODE, PYNATIVE_MODE
from modules import pipeline
from modules.pipeline import SVDPipeline

GB = 10**9
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("config", "size", "free", "mode"),
    [
        ("svd", (128, 128), 12 * GB, GRAPH_MODE),
        ("svd", (128, 128), 8 * GB, PYNATIVE_MODE),
        ("svd", (256, 256), 12 * GB, GRAPH_MODE),
        ("svd", (256, 256), 10 * GB, PYNATIVE_MODE),
        ("svd", (576, 1024), 24 * GB, PYNATIVE_MODE),
        ("svd", (576, 1024), 500 * GB, PYNATIVE_MODE),  # never measured
        ("svd_tiny", (128, 128), 1 * GB, GRAPH_MODE),
    ],
)
def test_graph_mode_is_preferred_where_it_fits(monkeypatch, config, size, free, mode):
    monkeypatch.setattr(pipeline, "free_bytes", lambda: free)
    monkeypatch.setattr(pipeline, "_device", lambda: "CPU")
    clip = object.__new__(SVDPipeline)  # without a checkpoint, which the choice does not need
    clip.engine = pipeline.load_model(CONFIGS / f"{config}.yaml")
    clip.num_frames, (clip.height, clip.width) = 14, size
    assert clip.preferred_mode == mode


def test_a_card_compiles_everything(monkeypatch):
    monkeypatch.setattr(pipeline, "_device", lambda: "Ascend")
    assert object.__new__(SVDPipeline).preferred_mode == GRAPH_MODE
