"""Random weights of the full architecture at small width, as files (`small.yaml` beside this module)."""

from functools import cache
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple
from unittest import mock

import numpy as np
import pytest

from gm.errors import UserError
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from gm.weights.names import expected_parameters, to_reference
from svd_tools import convert
from tests.error_line import with_list

CONFIG = Path(__file__).with_name("small.yaml")


@cache
def parameters(config: str) -> Dict[str, Tuple[int, ...]]:
    """Name → shape of a configuration's parameters; the network is built once for all tests."""
    return expected_parameters(config)


def random_weights(shapes: Mapping[str, Tuple[int, ...]], seed: int = 0) -> Dict[str, np.ndarray]:
    """A random array for every name, scaled so that activations keep their size; no two are alike, none symmetric."""
    rng = np.random.default_rng(seed)
    return {name: random_array(name, shape, rng) for name, shape in shapes.items()}


def random_array(name: str, shape: Tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Products by 1/√fan-in, norms about 1, mix factors about 0 (both branches count), the rest small."""
    values = rng.standard_normal(shape)
    if len(shape) > 1:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif to_reference(name).endswith("gamma"):
        values = 1 + 0.2 * values
    elif "mix_factor" not in name:
        values = 0.2 * values
    return np.asarray(values, np.float32)


def save_random(path: Path, config: Path = CONFIG, seed: int = 0) -> Dict[str, np.ndarray]:
    """Writes a published single file of random weights and returns them."""
    weights = random_weights(parameters(str(config)), seed)
    save_safetensors(path, weights)
    return weights


def run_convert(source: Path, out_dir: Path, *flags: str, config: Path = CONFIG) -> None:
    """`convert.py` in this process."""
    with mock.patch.object(convert, "expected_parameters", parameters):
        convert.main([f"--pt_weights_file={source}", f"--config={config}", f"--out_dir={out_dir}", *flags])


def refusal(*args: Any, **kwargs: Any) -> str:
    """The error that the same call of `convert.py` ends with, and what it lists."""
    with pytest.raises(UserError) as error:
        run_convert(*args, **kwargs)
    return with_list(str(error.value))


def read_all(path: Path) -> Dict[str, np.ndarray]:
    """All tensors of a checkpoint file."""
    with open_checkpoint(path) as source:
        return {name: np.array(source.read(name)) for name in source.info}


def assert_same_tensors(have: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """Same names, types, shapes and bits."""
    assert have.keys() == want.keys()
    for name, array in want.items():
        assert have[name].dtype == array.dtype and have[name].shape == array.shape, name
        assert have[name].tobytes() == array.tobytes(), name
