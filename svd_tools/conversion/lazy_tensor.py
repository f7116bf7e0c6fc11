"""Tensors that are read when their turn comes, and the operations of a conversion on them.

A conversion is a chain of pure functions over dictionaries of these; nothing is read before it is written.
"""

from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Sequence

import numpy as np

from gm.weights.tensor_source import ITEM_BYTES, Raw, TensorInfo, TensorSource


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class LazyTensor:
    """A stored tensor.

    Attributes:
        info: element type and shape.
        origin: where it comes from, in words, for `--dry_run` and for warnings.
        load: gives the bytes, in C order.
        release: gives back the memory that `load` took.
    """

    info: TensorInfo
    origin: str
    load: Callable[[], Raw]
    release: Callable[[], None] = _nothing


Tensors = Dict[str, LazyTensor]


def from_source(source: TensorSource, label: str) -> Tensors:
    """The tensors of an open checkpoint file; `label` names the file in their origins."""

    def tensor(name: str) -> LazyTensor:
        return LazyTensor(
            source.info[name], f"{label}: {name}", lambda: source.read_raw(name), lambda: source.release(name)
        )

    return {name: tensor(name) for name in source.info}


def zeros(info: TensorInfo, origin: str) -> LazyTensor:
    """A tensor of zeros."""
    return LazyTensor(info, origin, lambda: bytes(info.num_bytes))


def identity_conv(info: TensorInfo, origin: str) -> LazyTensor:
    """A float32 1x1 convolution that changes nothing: (c, c, 1, 1)."""
    return LazyTensor(info, origin, lambda: np.eye(info.shape[0], dtype="<f4").tobytes())


def reshaped(tensor: LazyTensor, shape: Sequence[int]) -> LazyTensor:
    """The same data under another shape."""
    return LazyTensor(TensorInfo(tensor.info.dtype, tuple(shape)), tensor.origin, tensor.load, tensor.release)


def transposed(tensor: LazyTensor) -> LazyTensor:
    """A matrix (rows, columns) as (columns, rows)."""
    rows, columns = tensor.info.shape
    code = f"V{ITEM_BYTES[tensor.info.dtype]}"  # any element type: the bytes are only moved

    def load() -> Raw:
        return np.frombuffer(tensor.load(), code).reshape(rows, columns).T.tobytes()

    return LazyTensor(TensorInfo(tensor.info.dtype, (columns, rows)), tensor.origin, load, tensor.release)


def stacked(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Tensors that differ at most in their first dimension, one after the other along it."""
    if len(tensors) == 1:
        return tensors[0]
    first = tensors[0].info
    info = TensorInfo(first.dtype, (sum(t.info.shape[0] for t in tensors), *first.shape[1:]))

    def release() -> None:
        for tensor in tensors:
            tensor.release()

    origin = " + ".join(tensor.origin for tensor in tensors)
    return LazyTensor(info, origin, lambda: b"".join(tensor.load() for tensor in tensors), release)


def split(tensor: LazyTensor, parts: int) -> Sequence[LazyTensor]:
    """The inverse of :func:`stacked`, for equal parts."""
    info = TensorInfo(tensor.info.dtype, (tensor.info.shape[0] // parts, *tensor.info.shape[1:]))

    def part(i: int) -> LazyTensor:
        def load() -> Raw:
            return memoryview(tensor.load())[i * info.num_bytes : (i + 1) * info.num_bytes]

        return LazyTensor(info, f"{tensor.origin} (part {i + 1} of {parts})", load, tensor.release)

    return [part(i) for i in range(parts)]


def infos(tensors: Mapping[str, LazyTensor]) -> Dict[str, TensorInfo]:
    """Name → element type and shape."""
    return {name: tensor.info for name, tensor in tensors.items()}
