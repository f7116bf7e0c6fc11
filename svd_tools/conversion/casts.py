"""Casts between the floating-point types of checkpoints, and a look for values that are not numbers."""

from typing import Tuple

import numpy as np

from gm.weights.tensor_source import ITEM_BYTES, Raw, TensorInfo, decode
from svd_tools.conversion.lazy_tensor import LazyTensor

DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # the command line's names → safetensors'
_EXPONENTS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}  # all set: inf or NaN
_NUMPY_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_BLOCK = 1 << 18  # elements looked at together: they fit a core's cache


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
