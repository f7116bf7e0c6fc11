"""A network whose weights are in memory only while they are needed."""

import gc
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

import mindspore as ms
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from gm.weights.checkpoint import open_checkpoint
from gm.weights.parameters import load_weights, parameter_shapes
from gm.weights.tensor_source import TensorSource

Needed = Callable[[str], bool]


class ModelPart:
    """One part of the model, from its recipe and its share of a checkpoint file.

    Args:
        build: makes the network.
        prefix: of its parameters in the published names.
        title: for the progress bar.
        needed: which of its parameters (by their name in the network) are loaded; None for all.
    """

    def __init__(self, build: Callable[[], nn.Cell], prefix: str, title: str, needed: Optional[Needed] = None) -> None:
        self.build, self.prefix, self.title, self.needed = build, prefix, title, needed
        self.path: Optional[Path] = None
        self.dtype = ms.float32
        self.offload = False
        self.net: Optional[nn.Cell] = None
        self._source: Optional[TensorSource] = None
        self._shapes: Optional[Dict[str, Tuple[int, ...]]] = None
        self.overlay: Callable[[TensorSource], TensorSource] = _as_it_is  # what stands between the file and the network

    def attach(self, path: Path, dtype: ms.Type = ms.float32, offload: bool = False) -> None:
        """Names the checkpoint file, the weights' type, and whether they are released after each use."""
        self.path, self.dtype, self.offload = path, dtype, offload

    def subset(self, title: str, needed: Needed) -> "ModelPart":
        """A part of its own over the same network and file, with another choice of parameters."""
        part = ModelPart(self.build, self.prefix, title, needed)
        part.attach(self.path)
        return part

    def skeleton(self) -> nn.Cell:
        """The network without values in its parameters."""
        with no_init_parameters():
            return self.build()

    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Published name -> shape of every parameter."""
        if self._shapes is None:
            self._shapes = parameter_shapes(self.skeleton(), self.prefix)
        return self._shapes

    def open(self) -> TensorSource:
        """The checkpoint file, seen through the overlay.

        Raises:
            UserError: the file cannot be read, or the overlay does not fit it.
        """
        return self.overlay(open_checkpoint(self.path))

    def load(self) -> nn.Cell:
        """The network with its weights, loaded now or before."""
        if self.net is None:
            net = self.skeleton()
            self._source = self.open()
            load_weights(net, self._source, self.prefix, self.dtype, self.needed, title=f"loading {self.title}")
            net.set_train(False)
            self.net = net
        return self.net

    def release(self) -> None:
        """Forgets the network and its weights; the pages of a mapped file go even if MindSpore still knows them."""
        if self.net is None:
            return
        names = [self.prefix + name for name, _ in self.net.parameters_and_names()]
        self.net = None
        gc.collect()
        for name in names:
            self._source.release(name)
        self._source.close()

    def __enter__(self) -> nn.Cell:
        return self.load()

    def __exit__(self, *exc_info: object) -> None:
        if self.offload:
            self.release()


def _as_it_is(source: TensorSource) -> TensorSource:
    return source
