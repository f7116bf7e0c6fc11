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
MAX_HEADER_BYTES = 1 << 24  # the format allows 100 million, which takes gigabytes to parse; SVD's has 0.3
DATA_SHA256 = "data_sha256"  # metadata key: SHA-256 of everything after the header, tensor after tensor
MAX_REASON = 200  # characters of another library's words in an error line
_METADATA = "__metadata__"
_DTYPE_NAMES = {np.dtype(code).name: name for name, code in NUMPY_DTYPES.items()}


def parse_safetensors(data, rename: Callable[[str], str] = str) -> Contents:
    """Reads the header of a mapped safetensors file, and refuses what the official library refuses.

    Raises:
        DamagedFile: the header cannot be read, or does not describe every byte behind it once.
    """
    header_end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if header_end > len(data):
        raise DamagedFile(f"it is truncated: {len(data)} bytes, and its header alone takes {header_end}")
    if header_end > MAX_HEADER_BYTES:
        raise DamagedFile(f"its header takes {header_end} bytes, more than {MAX_HEADER_BYTES}")
    try:
        header = parse_json(data[LENGTH_BYTES:header_end].decode("utf-8"))
        metadata = header.pop(_METADATA, None)
        metadata = {} if metadata is None else _texts(metadata)
        info = {rename(name): TensorInfo(*_described(entry)) for name, entry in header.items()}
        places = [_whole_numbers(entry["data_offsets"]) for entry in header.values()]
        extents = {name: [(header_end + start, header_end + stop)] for name, (start, stop) in zip(info, places)}
        "".join(header).encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"its safetensors header cannot be read ({str(error)[:MAX_REASON]})") from error
    if len(info) != len(header):
        raise DamagedFile("two of its tensors have the same name")
    _check_extents(info, extents, header_end, len(data))
    return Contents(info, extents, metadata)


def _texts(metadata: Mapping[str, str]) -> Dict[str, str]:
    """The text entries, each of which UTF-8 can hold."""
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise ValueError(f"{_METADATA} holds {key!r}, which is no text")
        (key + value).encode()
    return dict(metadata)


def _described(entry: Mapping[str, object]) -> Tuple[str, Tuple[int, ...]]:
    """A header entry's element type and shape."""
    shape = tuple(_whole_numbers(entry["shape"]))
    if entry["dtype"] not in ITEM_BYTES:
        raise ValueError(f"the element type {entry['dtype']!r} is unknown")
    return entry["dtype"], shape


def _whole_numbers(values: Sequence[object]) -> Sequence[int]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 1 << 63 for value in values):
        raise ValueError("a shape or a place in the file that is no list of whole numbers")
    return values


def _check_extents(info: Mapping[str, TensorInfo], extents: Mapping[str, list], end: int, file_bytes: int) -> None:
    """Each tensor has the bytes of its shape, and they follow each other from `end` to the file's."""
    for name, [(start, stop)] in sorted(extents.items(), key=lambda item: item[1]):
        if stop - start != info[name].num_bytes:
            raise DamagedFile(f"its header gives {name} {stop - start} bytes, its shape takes {info[name].num_bytes}")
        if start != end:
            raise DamagedFile(f"{name} does not start where the tensor before it ends")
        end = stop
    if end > file_bytes:
        raise DamagedFile(f"it is truncated: {file_bytes} bytes, and its header says {end}")
    if end < file_bytes:
        raise DamagedFile(f"it has {file_bytes - end} bytes that belong to no tensor")


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
