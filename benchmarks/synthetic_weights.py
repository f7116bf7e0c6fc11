"""Writes a checkpoint of a configuration's names and shapes with random values, for benchmarks at full size."""

from math import prod
from pathlib import Path
from typing import Tuple

import numpy as np

from gm.weights.names import expected_parameters
from gm.weights.safetensors_file import array_bytes, write_safetensors
from gm.weights.tensor_source import TensorInfo

POOL = 1 << 24  # random values that are drawn once and used again at other offsets


def ensure_checkpoint(path: Path, config: Path) -> Path:
    """The file at `path`, written first if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_checkpoint(path, config)
    return path


def write_checkpoint(path: Path, config: Path, seed: int = 0) -> None:
    """Random weights, scaled so that activations keep their size: products by 1/√fan-in, norms about 1."""
    shapes = expected_parameters(config)
    info = {name: TensorInfo("F32", shape) for name, shape in shapes.items()}
    pool = np.random.default_rng(seed).standard_normal(POOL, np.float32)
    offsets = {name: index * 7919 % (POOL // 2) for index, name in enumerate(info)}

    def read(name: str) -> memoryview:
        return array_bytes(_values(name, info[name].shape, pool[offsets[name] :]))

    write_safetensors(path, info, read, {"source": "random weights for benchmarks"})


def _values(name: str, shape: Tuple[int, ...], pool: np.ndarray) -> np.ndarray:
    values = np.resize(pool, prod(shape)).reshape(shape)
    if len(shape) > 1:
        return values * np.float32(prod(shape[1:]) ** -0.5)
    return values * np.float32(0.1) + np.float32(name.endswith("weight"))
