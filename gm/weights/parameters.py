"""Weights from a checkpoint file into a network, without a second copy, and trained ones back into a file."""

import re
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Protocol, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from tqdm import tqdm

from gm.weights.checkpoint import open_checkpoint
from gm.weights.safetensors_file import array_bytes, write_safetensors
from gm.weights.tensor_source import Raw, TensorInfo, TensorSource

NUMPY_TYPE = {ms.float32: np.float32, ms.float16: np.float16}
Shape = Tuple[int, ...]
Values = Mapping[str, Callable[[], np.ndarray]]  # name in the network -> gives the tensor (fp32) when its turn comes


def parameter_shapes(net: nn.Cell, prefix: str = "") -> Dict[str, Shape]:
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
        dtype: of the parameters with two or more axes and of their biases; norms stay fp32.
        needed: chooses parameters by their name in the network; the others are left uninitialised.
        title: shows a progress bar of this name where standard error is a terminal.
    """
    axes = {name: parameter.ndim for name, parameter in net.parameters_and_names()}
    parameters = [(name, p) for name, p in net.parameters_and_names() if needed is None or needed(name)]
    for name, parameter in tqdm(parameters, desc=title, unit="tensor", disable=None if title else True, leave=False):
        of_product = max(axes[name], axes.get(re.sub("bias$", "weight", name), 0)) > 1
        array, wanted = source.read(prefix + name), dtype if of_product else ms.float32
        set_parameter(parameter, array, wanted)
        if array.dtype != NUMPY_TYPE[wanted]:
            source.release(prefix + name)  # what was read is converted: its pages are not needed any more


def set_parameter(parameter: Parameter, array: np.ndarray, dtype: ms.Type = ms.float32) -> None:
    """Gives a parameter the array's values, in `dtype`, sharing the array's memory where the type is right already."""
    array = np.asarray(array, NUMPY_TYPE[dtype], order="C")
    if parameter.dtype != dtype:
        parameter.set_dtype(dtype)
    parameter.set_data(Tensor.from_numpy(array))


class WeightsWriter(Protocol):
    """Writes what was trained as a safetensors file that users load.

    Attributes:
        file_name: of the file, in the checkpoint's folder.
    """

    file_name: str

    def num_bytes(self, shapes: Mapping[str, Shape]) -> int:
        """Size of the file to come, for trained tensors of these shapes."""

    def write(self, folder: Path, values: Values, metadata: Mapping[str, str]) -> Path:
        """Writes `folder/file_name` with the trained tensors and, as its text entries, the metadata."""


class FullModelWriter:
    """The whole model under the published names: trained tensors in fp32, all others as the base file has them.

    A :class:`WeightsWriter`. The base file stays open, so that it may be removed or renamed while a run goes on.

    Args:
        base: the checkpoint that training started from.
        prefix: of the trained network's names in the file.
        copies: names in the file that take the values of others, trained ones, which may stand for several networks.
    """

    file_name = "model.safetensors"

    def __init__(
        self, base: Path, prefix: str = "model.diffusion_model.", copies: Optional[Mapping[str, str]] = None
    ) -> None:
        self.source, self.prefix, self.copies = open_checkpoint(base), prefix, dict(copies or {})

    def num_bytes(self, shapes: Mapping[str, Shape]) -> int:
        """Size of the file to come, for trained tensors of these shapes."""
        return sum(info.num_bytes for info in self._info(shapes).values())

    def write(self, folder: Path, values: Values, metadata: Mapping[str, str]) -> Path:
        """Writes `folder/file_name`; tensors pass through memory one at a time."""
        trained = self._in_file(values)

        def read(name: str) -> Raw:
            if name in trained:
                return array_bytes(np.asarray(trained[name](), np.float32))
            raw = bytes(self.source.read_raw(name))
            self.source.release(name)
            return raw

        info = self._info({name: self.source.info[self.prefix + name].shape for name in values})
        write_safetensors(folder / self.file_name, info, read, {"format": "pt", **self._source_name, **metadata})
        return folder / self.file_name

    @property
    def _source_name(self) -> Dict[str, str]:
        """The file that training started from first: it tells the model of those of its network."""
        return {"source": self.source.metadata.get("source", self.source.path.name)}

    def _info(self, shapes: Mapping[str, Shape]) -> Dict[str, TensorInfo]:
        trained = self._in_file({name: TensorInfo("F32", tuple(shape)) for name, shape in shapes.items()})
        return {name: trained.get(name, stored) for name, stored in self.source.info.items()}

    def _in_file(self, trained: Mapping[str, Any]) -> Dict[str, Any]:
        """What belongs to trained tensors, by their names in the file."""
        named = {self.prefix + name: value for name, value in trained.items()}
        return {**named, **{copy: named[name] for copy, name in self.copies.items()}}
