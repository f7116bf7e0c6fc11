"""The safetensors format: an 8-byte header length, a JSON header, then the tensors' bytes.

Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from gm.files import PathLike, atomic_file, parse_json
from gm.weights.tensor_source import ITEM_BYTES, NUMPY_DTYPES, Contents, DamagedFile, Raw, TensorInfo

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DATA_SHA256 = "data_sha256"  # metadata key: SHA-256 of everything after the header, tensor after tensor
MAX_TENSORS = 100_000  # many times those of the largest model
MAX_REASON = 200  # characters of another library's words in an error line
_METADATA, _OFFSETS = "__metadata__", b"data_offsets"
_DTYPE_NAMES = {np.dtype(code).name: name for name, code in NUMPY_DTYPES.items()}


def parse_safetensors(data, rename: Callable[[str], str] = str) -> Contents:
    """Reads the header of a mapped safetensors file and checks it against the file's size.

    Raises:
        DamagedFile: the header cannot be read, or the file is shorter than it says.
    """
    header_end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if header_end > len(data):
        raise DamagedFile(f"it is truncated: {len(data)} bytes, and its header alone takes {header_end}")
    try:
        text = data[LENGTH_BYTES:header_end]
        if text.count(_OFFSETS) > MAX_TENSORS:
            raise ValueError(f"more than {MAX_TENSORS} tensors")
        header = parse_json(text)
        metadata = {str(key): str(value) for key, value in (header.pop(_METADATA, None) or {}).items()}
        info = {rename(name): TensorInfo(*_described(entry)) for name, entry in header.items()}
        starts_stops = [_whole_numbers(entry["data_offsets"]) for entry in header.values()]
        extents = {name: [(header_end + a, header_end + b)] for name, (a, b) in zip(info, starts_stops)}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedFile(f"its safetensors header cannot be read ({str(error)[:MAX_REASON]})") from error
    if len(info) != len(header):
        raise DamagedFile("two of its tensors have the same name")
    _check_extents(info, extents, len(data))
    return Contents(info, extents, metadata)


def _described(entry: Mapping[str, object]) -> Tuple[str, Tuple[int, ...]]:
    """A header entry's element type and shape."""
    shape = tuple(_whole_numbers(entry["shape"]))
    if not isinstance(entry["dtype"], str):
        raise ValueError("an element type that is no text")
    return entry["dtype"], shape


def _whole_numbers(values: Sequence[object]) -> Sequence[int]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 1 << 63 for value in values):
        raise ValueError("a shape or a place in the file that is no list of whole numbers")
    return values


def _check_extents(info: Mapping[str, TensorInfo], extents: Mapping[str, list], file_bytes: int) -> None:
    for name, [(start, stop)] in extents.items():
        if info[name].dtype not in ITEM_BYTES:
            raise DamagedFile(f"{name} has the unknown element type {info[name].dtype}")
        if stop - start != info[name].num_bytes or start < LENGTH_BYTES:
            raise DamagedFile(f"its header gives {name} {stop - start} bytes, its shape takes {info[name].num_bytes}")
    needed = max((stop for [(_, stop)] in extents.values()), default=0)
    if needed > file_bytes:
        raise DamagedFile(f"it is truncated: {file_bytes} bytes, and its header says {needed}")


def write_safetensors(
    path: PathLike,
    info: Mapping[str, TensorInfo],
    read: Callable[[str], Raw],
    metadata: Mapping[str, str],
    late_metadata: Callable[[], Mapping[str, str]] = dict,
) -> str:
    """Writes a safetensors file tensor by tensor: whole or not at all.

    Args:
        path: the file.
        info: the tensors, by name; they are stored in this order, wider element types first (for alignment).
        read: gives a tensor's bytes when its turn comes; only one tensor is held at a time.
        metadata: the text entries. The data's hash is added as `data_sha256`.
        late_metadata: called when all tensors are written; replaces text entries by others of the same length.

    Returns:
        The SHA-256 of the tensors' bytes, in hexadecimal.
    """
    order = sorted(info, key=lambda name: -ITEM_BYTES[info[name].dtype])
    digest = hashlib.sha256()
    with atomic_file(path) as temporary, open(temporary, "wb") as file, ThreadPoolExecutor(1) as hasher:
        header = _header(info, order, {**metadata, DATA_SHA256: digest.hexdigest()})
        file.write(header)
        for name in order:
            raw = read(name)
            if len(raw) != info[name].num_bytes:
                raise ValueError(f"{name}: {len(raw)} bytes given for {info[name].num_bytes}")
            hashed = hasher.submit(digest.update, raw)  # beside the writing
            file.write(raw)
            hashed.result()
        final = _header(info, order, {**metadata, **late_metadata(), DATA_SHA256: digest.hexdigest()})
        if len(final) != len(header):
            raise ValueError("the metadata changed its length while the tensors were written")
        file.seek(0)
        file.write(final)
    return digest.hexdigest()


def save_safetensors(
    path: PathLike, tensors: Mapping[str, np.ndarray], metadata: Optional[Mapping[str, str]] = None
) -> str:
    """Writes arrays as a safetensors file: whole or not at all. Returns the SHA-256 of the tensors' bytes.

    A lazy mapping is read one tensor at a time, twice (shapes first). bfloat16 arrays are those whose dtype is so
    named (MindSpore's, ml_dtypes').
    """
    info = {name: array_info(tensors[name]) for name in tensors}
    text = {"format": "pt", **(metadata or {})}
    return write_safetensors(path, info, lambda name: array_bytes(tensors[name]), text)


def array_info(array: np.ndarray) -> TensorInfo:
    """The stored form of an array. Raises ValueError for an element type that safetensors lacks."""
    dtype = "BF16" if array.dtype.name == "bfloat16" else _DTYPE_NAMES.get(array.dtype.name)
    if dtype is None:
        raise ValueError(f"safetensors has no element type for {array.dtype}")
    return TensorInfo(dtype, tuple(array.shape))


def array_bytes(array: np.ndarray) -> Raw:
    """The bytes of an array in C order, little-endian; no copy where it is so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _header(info: Mapping[str, TensorInfo], order: list, metadata: Mapping[str, str]) -> bytes:
    entries: Dict[str, object] = {_METADATA: dict(metadata)}
    offset = 0
    for name in order:
        stop = offset + info[name].num_bytes
        entries[name] = {"dtype": info[name].dtype, "shape": list(info[name].shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # the data starts aligned
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
