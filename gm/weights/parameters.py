"""Weights from a checkpoint file into a network, without a second copy."""

from typing import Callable, Dict, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from tqdm import tqdm

from gm.weights.tensor_source import TensorSource

NUMPY_TYPE = {ms.float32: np.float32, ms.float16: np.float16}


def parameter_shapes(net: nn.Cell, prefix: str = "") -> Dict[str, Tuple[int, ...]]:
    """name -> shape of every parameter, in the network's order."""
    return {prefix + name: tuple(parameter.shape) for name, parameter in net.parameters_and_names()}


def load_weights(
    net: nn.Cell,
    source: TensorSource,
    prefix: str = "",
    dtype: ms.Type = ms.float32,
    needed: Optional[Callable[[str], bool]] = None,
    title: Optional[str] = None,
) -> None:
    """Sets a network's parameters from a file whose names and shapes were compared before.

    fp32 parameters of an fp32 file share the memory map: no copy is made, and pages are read when they are used.

    Args:
        prefix: what the file's names have before the network's.
        dtype: of the parameters with two or more axes; biases and norms stay fp32.
        needed: chooses parameters by their name in the network; the others are left uninitialised.
        title: shows a progress bar of this name where standard error is a terminal.
    """
    parameters = [(name, p) for name, p in net.parameters_and_names() if needed is None or needed(name)]
    for name, parameter in tqdm(parameters, desc=title, unit="tensor", disable=None if title else True, leave=False):
        set_parameter(parameter, source.read(prefix + name), dtype if parameter.ndim > 1 else ms.float32)


def set_parameter(parameter: Parameter, array: np.ndarray, dtype: ms.Type = ms.float32) -> None:
    """Gives a parameter the array's values, in `dtype`, sharing the array's memory where the type is right already."""
    array = np.asarray(array, NUMPY_TYPE[dtype], order="C")
    if parameter.dtype != dtype:
        parameter.set_dtype(dtype)
    parameter.set_data(Tensor.from_numpy(array))
