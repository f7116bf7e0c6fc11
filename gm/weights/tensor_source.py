"""The tensors of one checkpoint file, read from a memory map: nothing is copied until it is asked for."""

import mmap
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Dict, List, Mapping, Tuple, Union

import numpy as np

from gm.errors import UserError

# safetensors' names for the element types, and NumPy's where it has the type (files are little-endian).
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
NUMPY_DTYPES = {
    "BOOL": "?", "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip

MAX_AXES, MAX_ELEMENTS = 16, 1 << 48

Extent = Tuple[int, int]  # first byte and the byte after the last, counted from the file's start
Raw = Union[bytes, memoryview]


class DamagedFile(ValueError):
    """A file that breaks the rules of its format; the message says how, without naming the file."""


@dataclass(frozen=True)
class TensorInfo:
    """Element type (safetensors' names: "F32", "F16", "BF16", "I64", …) and shape of a stored tensor."""

    dtype: str
    shape: Tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses a shape that no array can have, be it with a zero in it."""
        if len(self.shape) > MAX_AXES or prod(max(size, 1) for size in self.shape) > MAX_ELEMENTS:
            raise DamagedFile(f"it has a tensor of more than {MAX_AXES} axes or {MAX_ELEMENTS} numbers")

    @property
    def num_bytes(self) -> int:
        """Size of the stored data."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Contents:
    """What a file holds: information and place of every tensor, by its published name, in the file's order."""

    info: Dict[str, TensorInfo]
    extents: Dict[str, List[Extent]]  # one extent, or several where the format stores a tensor in parts
    metadata: Dict[str, str]


class TensorSource:
    """An open checkpoint file.

    Attributes:
        path: the file.
        info: published name → :class:`TensorInfo`, in the file's order.
        metadata: the file's own text entries.
        mapping, contents: the bytes, and the places of the tensors in them.

    Used as a context manager it closes itself. Arrays that were read stay valid after that: the file stays mapped
    until the last one is gone.
    """

    def __init__(self, path: Path, mapping: mmap.mmap, contents: Contents):
        self.path, self.mapping, self.contents = path, mapping, contents
        self.info: Mapping[str, TensorInfo] = contents.info
        self.metadata: Mapping[str, str] = contents.metadata

    def __enter__(self) -> "TensorSource":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read(self, name: str) -> np.ndarray:
        """A tensor as a read-only array over the memory map.

        bfloat16, which NumPy lacks, comes as a float32 copy. The data of a `.ckpt` need not be aligned in memory.

        Raises:
            UserError: an element type that cannot be computed with (8-bit floats).
        """
        return decode(self.read_raw(name), self.info[name], f"{self.path}: {name}")

    def read_raw(self, name: str) -> Raw:
        """A tensor's bytes as stored: a view of the memory map, or a copy of a tensor that is stored in parts."""
        view = memoryview(self.mapping)
        parts = [view[start:stop] for start, stop in self.contents.extents[name]]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self, name: str) -> None:
        """Lets the system take back the memory behind a tensor that was read; reading it again is still correct."""
        for start, stop in self.contents.extents[name]:
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            if hasattr(mmap, "MADV_DONTNEED") and stop - first >= mmap.PAGESIZE:
                self.mapping.madvise(mmap.MADV_DONTNEED, first, stop - first)

    def close(self) -> None:
        """Unmaps the file now, or with the last array that was read from it."""
        with suppress(BufferError):  # arrays over the map are in use: the map goes with them
            self.mapping.close()


def decode(raw: Raw, info: TensorInfo, what: str) -> np.ndarray:
    """Stored bytes as an array, without a copy but for bfloat16, which is widened to float32.

    Raises:
        UserError: an element type that cannot be computed with; `what` names the tensor in the line.
    """
    if info.dtype == "BF16":
        wide = _view(raw, "<u2", info.shape).astype("<u4")
        wide <<= 16  # bfloat16 is the upper half of a float32
        return wide.view("<f4")
    if info.dtype not in NUMPY_DTYPES:
        raise UserError(f"{what} is stored as {info.dtype}, which is not supported; use an fp32, fp16 or bf16 file")
    return _view(raw, NUMPY_DTYPES[info.dtype], info.shape)


def _view(raw: Raw, dtype: str, shape: Tuple[int, ...]) -> np.ndarray:
    if not len(raw):  # np.frombuffer refuses an empty buffer
        return np.empty(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape)  # unlike np.ndarray(buffer=…), it keeps the file mapped
