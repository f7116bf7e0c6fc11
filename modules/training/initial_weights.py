"""Weights to start from where there is no pretrained file."""

from pathlib import Path
from typing import Dict, Mapping, Optional

import mindspore as ms
import numpy as np

from gm.model import DiffusionEngine
from gm.weights.safetensors_file import save_safetensors


def write_initial_weights(
    engine: DiffusionEngine, path: Path, seed: int, known: Optional[Mapping[str, np.ndarray]] = None
) -> None:
    """Writes the whole model's initial values as a checkpoint under the published names.

    The last layer of every residual branch is zero, norms are the identity, all else is uniform in ±1/√fan-in.

    Args:
        seed: of the values; the same seed gives the same file.
        known: published name -> tensor: values that were trained before, such as the encoders'.
    """
    tensors: Dict[str, np.ndarray] = {}
    for stage in engine.stages:
        ms.set_seed(seed)
        for name, parameter in stage.build().parameters_and_names():
            tensors[stage.prefix + name] = parameter.asnumpy()
    save_safetensors(path, {**tensors, **(known or {})}, {"initialised_with_seed": str(seed)})
