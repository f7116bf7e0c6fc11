"""A run or a cache of before is recognised, although classes have other names now."""

from pathlib import Path

import pytest

from gm.config.factory import load_config
from modules.training.fingerprint import digest

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("name", "start"),
    [("svd", "74efb8c5a43ada01"), ("svd_xt", "22fee18a13bed5c7"), ("svd_tiny", "8fbbf9722dc35310")],
)
def test_a_configurations_fingerprint_is_that_of_runs_before_its_classes_moved(name, start):
    """The values are those that `state.json` had when the UNet's class was `modules.unet3d.VideoUNet`."""
    parameters = load_config(CONFIGS / f"{name}.yaml")["model"]["params"]
    network = {key: value for key, value in parameters.items() if key != "sampler_config"}
    assert digest(network).startswith(start)
    network["scale_factor"] = 0.2
    assert not digest(network).startswith(start)
