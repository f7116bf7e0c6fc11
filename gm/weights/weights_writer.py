"""Trained weights as a safetensors file that every program for the model reads."""

from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Protocol, Tuple

import numpy as np

from gm.weights.checkpoint import open_checkpoint
from gm.weights.safetensors_file import array_bytes, write_safetensors
from gm.weights.tensor_source import Raw, TensorInfo

Shape = Tuple[int, ...]


class WeightsWriter(Protocol):
    """Writes what was trained in the form that users load.

    Attributes:
        file_name: of the file, in the checkpoint's folder.
    """

    file_name: str

    def num_bytes(self, shapes: Mapping[str, Shape]) -> int:
        """Size of the file to come, for trained tensors of these shapes."""

    def write(self, folder: Path, values: Mapping[str, Callable[[], np.ndarray]], metadata: Mapping[str, str]) -> Path:
        """Writes `folder/file_name`.

        Args:
            values: name in the network -> a function that gives the tensor (fp32) when its turn comes.
            metadata: text entries for the file.
        """


class FullModelWriter:
    """The whole model under the published names: trained tensors in fp32, all others as the base file has them.

    The base file stays open, so that it may be removed or renamed while a run goes on.

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
        """See :class:`WeightsWriter`."""
        return sum(info.num_bytes for info in self._info(shapes).values())

    def write(self, folder: Path, values: Mapping[str, Callable[[], np.ndarray]], metadata: Mapping[str, str]) -> Path:
        """See :class:`WeightsWriter`; other tensors pass through memory one at a time."""
        path = folder / self.file_name
        trained = {self.prefix + name: value for name, value in values.items()}
        trained.update({copy: trained[name] for copy, name in self.copies.items()})
        shapes = {name: self.source.info[self.prefix + name].shape for name in values}
        last: List[Optional[str]] = [None]

        def read(name: str) -> Raw:
            if last[0] is not None:
                self.source.release(last[0])
            last[0] = None if name in trained else name
            if name in trained:
                return array_bytes(np.asarray(trained[name](), np.float32))
            return self.source.read_raw(name)

        write_safetensors(path, self._info(shapes), read, {"format": "pt", **metadata})
        return path

    def _info(self, shapes: Mapping[str, Shape]) -> Dict[str, TensorInfo]:
        trained = {self.prefix + name: TensorInfo("F32", tuple(shape)) for name, shape in shapes.items()}
        trained.update({copy: trained[name] for copy, name in self.copies.items()})
        return {name: trained.get(name, stored) for name, stored in self.source.info.items()}
