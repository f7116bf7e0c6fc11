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



def _float8(exponent_bits: int) -> np.ndarray:
    """The 256 values of an 8-bit float (Micikevicius et al. 2022), fp32; with 4 exponent bits none is infinite."""
    bits = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    exponent, mantissa = bits >> mantissa_bits & (1 << exponent_bits) - 1, bits & (1 << mantissa_bits) - 1
    normal = exponent > 0
    power = np.where(normal, exponent, 1) - (1 << exponent_bits - 1) + 1 - mantissa_bits
    values = np.ldexp(mantissa + (normal << mantissa_bits), power)
    if exponent_bits == 5:
        values[exponent == 31] = np.where(mantissa[exponent == 31], np.nan, np.inf)
    else:
        values[bits & 0x7F == 0x7F] = np.nan
    return np.where(bits < 128, values, -values).astype(np.float32)


FLOAT8 = {"F8_E4M3": _float8(4), "F8_E5M2": _float8(5)}  # value of each byte
SCALE, OF_SCALED = ".scale_weight", (".scale_input", "scaled_fp8")  # ComfyUI's: X.weight times X.scale_weight
WEIGHT_TYPES = {"F16", "BF16", "F32", "F64", *FLOAT8}
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
        info: published name → :class:`TensorInfo`, in the file's order. A tensor that has a scale beside it appears as
            what the two make, in fp32.
        metadata: the file's own text entries.
        mapping, contents: the bytes, and the places of the tensors in them.

    Used as a context manager it closes itself. Arrays that were read stay valid after that: the file stays mapped
    until the last one is gone.
    """

    def __init__(self, path: Path, mapping: mmap.mmap, contents: Contents):
        self.path, self.mapping, self.contents = path, mapping, contents
        pairs = {name[: -len(SCALE)] + ".weight": name for name in contents.info if name.endswith(SCALE)}
        self._scales = {name: scale for name, scale in pairs.items() if name in contents.info}
        dropped = {*self._scales.values(), *(name for name in contents.info if pairs and name.endswith(OF_SCALED))}
        self.info: Mapping[str, TensorInfo] = {
            name: TensorInfo("F32", info.shape) if name in self._scales else info
            for name, info in contents.info.items()
            if name not in dropped
        }
        self.metadata: Mapping[str, str] = contents.metadata

    def __enter__(self) -> "TensorSource":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read(self, name: str) -> np.ndarray:
        """A tensor as a read-only array over the memory map.

        bfloat16 and 8-bit floats, which NumPy lacks, come as a float32 copy. The data of a `.ckpt` need not be aligned
        in memory.

        Raises:
            UserError: an element type that cannot be computed with.
        """
        return self._read(name)

    def _read(self, name: str) -> np.ndarray:
        values = decode(self._stored(name), self.contents.info[name], f"{self.path}: {name}")
        if name not in self._scales:
            return values
        return values.astype(np.float32) * self._read(self._scales[name]).reshape(-1, *[1] * (values.ndim - 1))

    def read_raw(self, name: str) -> Raw:
        """A tensor's bytes as :attr:`info` has it: a view of the memory map, or a copy of what is stored in parts or
        with a scale."""
        return self._read(name).astype("<f4").tobytes() if name in self._scales else self._stored(name)

    def _stored(self, name: str) -> Raw:
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
    """Stored bytes as an array, without a copy but for bfloat16 and 8-bit floats, which are widened to float32.

    Raises:
        UserError: an element type that cannot be computed with; `what` names the tensor in the line.
    """
    if info.dtype == "BF16":
        wide = _view(raw, "<u2", info.shape).astype("<u4")
        wide <<= 16  # bfloat16 is the upper half of a float32
        return wide.view("<f4")
    if info.dtype in FLOAT8:
        return FLOAT8[info.dtype][_view(raw, "<u1", info.shape)]
    if info.dtype not in NUMPY_DTYPES:
        raise UserError(f"{what} is stored as {info.dtype}, which is not supported; use an fp32, fp16 or bf16 file")
    return _view(raw, NUMPY_DTYPES[info.dtype], info.shape)


def _view(raw: Raw, dtype: str, shape: Tuple[int, ...]) -> np.ndarray:
    if not len(raw):  # np.frombuffer refuses an empty buffer
        return np.empty(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape)  # unlike np.ndarray(buffer=…), it keeps the file mapped
