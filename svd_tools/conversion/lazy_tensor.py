"""Tensors that are read when their turn comes, and what a conversion does to them: reshaping, casting, checking.

A conversion is a chain of pure functions over dictionaries of these; nothing is read before it is written.
"""

from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Sequence, Tuple

import numpy as np

from gm.weights.tensor_source import ITEM_BYTES, Raw, TensorInfo, TensorSource, decode

DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # the command line's names → safetensors'
_EXPONENTS = {  # all set: inf or NaN; F8_E4M3 has NaN alone, of all bits but the sign
    "F8_E4M3": 0x7F, "F8_E5M2": 0x7C, "F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000,
}  # fmt: skip
_NUMPY_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_BLOCK = 1 << 18  # elements looked at together: they fit a core's cache


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
    release: Callable[[], None] = lambda: None


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


def writable(dtype: str) -> str:
    """The type itself, or fp32 for one that :func:`encode` does not write."""
    return dtype if dtype in (*_NUMPY_FLOATS, "BF16") else "F32"


def cast(tensor: LazyTensor, dtype: str) -> LazyTensor:
    """A tensor in another floating-point type, rounded to nearest, ties to even; other types stay as they are."""
    have = tensor.info
    if have.dtype == dtype or have.dtype not in _EXPONENTS:
        return tensor

    def load() -> Raw:
        return encode(decode(tensor.load(), have, tensor.origin), dtype)

    return LazyTensor(TensorInfo(dtype, have.shape), tensor.origin, load, tensor.release)


def encode(values: np.ndarray, dtype: str) -> bytes:
    """Floating-point values as the bytes of a stored type. Values too large for it become infinite."""
    if dtype == "BF16":
        return to_bfloat16(values).tobytes()
    with np.errstate(over="ignore"):
        return values.astype(_NUMPY_FLOATS[dtype], copy=False).tobytes()


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 values (uint16), rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def count_not_finite(raw: Raw, info: TensorInfo) -> Tuple[int, int]:
    """How many elements of a stored tensor are NaN, and how many infinite; (0, 0) for what is no floating point."""
    if info.dtype not in _EXPONENTS:
        return 0, 0
    item = ITEM_BYTES[info.dtype]
    exponent = np.array(_EXPONENTS[info.dtype], f"<u{item}")
    bits = np.frombuffer(raw, exponent.dtype) if len(raw) else np.empty(0, exponent.dtype)
    exponents = np.empty(min(_BLOCK, bits.size), exponent.dtype)
    nan = infinite = 0
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        masked = np.bitwise_and(block, exponent, out=exponents[: block.size])
        if masked.max() != exponent:
            continue
        values = decode(block.tobytes(), TensorInfo(info.dtype, block.shape), "")
        nan += int(np.isnan(values).sum())
        infinite += int(np.isinf(values).sum())
    return nan, infinite
