"""A small random model for the commands' tests: as fast to sample as one gets, of the real classes."""

from pathlib import Path

import numpy as np
import pytest

from gm.config.factory import instantiate, load_config
from gm.weights.safetensors_file import save_safetensors

PROJECT = Path(__file__).parents[2]
TINY_CONFIG = PROJECT / "configs" / "svd_tiny.yaml"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A file of random weights for configs/svd_tiny.yaml, scaled so that no layer explodes and none is silent."""
    rng = np.random.default_rng(0)
    shapes = instantiate(load_config(TINY_CONFIG)["model"]).parameter_shapes()
    path = tmp_path_factory.mktemp("weights") / "random_tiny.safetensors"
    save_safetensors(path, {name: random_parameter(rng, name, shape) for name, shape in shapes.items()})
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Videos, a checkpoint and flags for train.py, made anew for each file of tests."""
    from tests.e2e.training import Workplace

    return Workplace(tmp_path_factory.mktemp("training"))


class StandIn:
    """What the command sees of a pipeline, without a model behind it.

    Args:
        frames: (t, h, w, 3) uint8: what every call gives, or an exception that it raises.
    """

    num_frames, height, width, fps = 2, 64, 64, 7

    def __init__(self, frames):
        self.frames = frames
        self.settings = {"num_frames": self.num_frames}

    def __call__(self, image, seed):
        if isinstance(self.frames, Exception):
            raise self.frames
        return self.frames


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a :class:`StandIn` in the pipeline's place."""

    def replace(frames):
        monkeypatch.setattr("image_to_video.build_pipeline", lambda flags: StandIn(frames))

    return replace


def random_parameter(rng, name, shape):
    """fp32: variance 1 / inputs for products, about 1 for norms' weights, about 0 for biases."""
    values = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    return values * np.float32(0.1) + np.float32(name.endswith(".weight"))
