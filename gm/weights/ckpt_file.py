"""MindSpore's `.ckpt` format, read and written part by part.

A file is one protobuf message (`mindspore/train/checkpoint_pb2`):

    Checkpoint { repeated Value value = 1 }
    Value      { string tag = 1; TensorProto tensor = 2; MapTensorProto maptensor = 3 }
    TensorProto{ repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

MindSpore holds such a file three times over while it loads it; here only the few bytes around each tensor's data are
looked at, and the data stay in the file. A tensor above 512 MiB is stored as several consecutive values of the same
tag, each with the whole tensor's dims. A file saved with `crc_check=True` ends in 17 further bytes.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, Iterator, List, Mapping, Tuple

from gm.files import PathLike, atomic_file
from gm.weights.tensor_source import MAX_AXES, Contents, DamagedFile, Extent, Raw, TensorInfo

SLICE_BYTES = 512 * 1024 * 1024  # mindspore.train.serialization.SLICE_SIZE
MAX_TENSORS, MAX_TEXT_BYTES = 100_000, 1 << 22  # far beyond those of the largest model
CRC_MARK, CRC_BYTES = b"crc_num", 17  # the mark, then ten bytes with the checksum

TYPE_NAMES = {
    "BOOL": "Bool", "U8": "UInt8", "I8": "Int8", "U16": "UInt16", "I16": "Int16", "U32": "UInt32", "I32": "Int32",
    "U64": "UInt64", "I64": "Int64", "F16": "Float16", "BF16": "BFloat16", "F32": "Float32", "F64": "Float64",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in TYPE_NAMES.items()}
_TEXT_TYPE = "str"  # a text entry: UTF-32 code units

_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}  # protobuf wire types; bytes of those of fixed length
_KEY_VALUE = _KEY_TAG = _KEY_DIM_PACKED = 1 << 3 | _BYTES
_KEY_TENSOR = _KEY_TYPE = 2 << 3 | _BYTES
_KEY_MAP_TENSOR = _KEY_CONTENT = 3 << 3 | _BYTES
_KEY_DIM = 1 << 3 | _VARINT

Field = Tuple[int, int, int]  # the field's key; its number for a varint, else its first byte; the byte after it


def parse_ckpt(data, rename: Callable[[str], str] = str) -> Contents:
    """Finds every tensor of a mapped `.ckpt` file, without touching the tensors' data.

    Raises:
        DamagedFile: not this format, truncated, or with content that is no tensor.
    """
    end = len(data) - CRC_BYTES if data[-CRC_BYTES:][: len(CRC_MARK)] == CRC_MARK else len(data)
    info: Dict[str, TensorInfo] = {}
    extents: Dict[str, List[Extent]] = {}
    metadata: Dict[str, str] = {}
    previous, room = None, MAX_TEXT_BYTES
    for key, start, stop in _fields(data, 0, end):
        if key != _KEY_VALUE:
            raise DamagedFile("it is not a MindSpore checkpoint")
        tag, dtype, shape, extent = _parse_value(data, start, stop)
        if dtype == _TEXT_TYPE:
            room -= stop - start
            if room < 0:
                raise DamagedFile(f"it has more than {MAX_TEXT_BYTES} bytes of text")
            metadata[tag] = data[slice(*extent)].decode("utf-32-le", errors="replace")
            continue
        if dtype not in _DTYPES:
            raise DamagedFile(f"{tag} has the element type {dtype!r}, which is not supported")
        name = rename(tag)
        entry = TensorInfo(_DTYPES[dtype], () if shape == (0,) and extent[0] < extent[1] else shape)
        if name in info and (previous != tag or info[name] != entry):
            raise DamagedFile(f"two of its tensors have the same name, {name}")
        info[name] = entry
        if len(info) > MAX_TENSORS:
            raise DamagedFile(f"it has more than {MAX_TENSORS} tensors")
        extents.setdefault(name, []).append(extent)
        previous = tag
    for name, parts in extents.items():
        stored = sum(stop - start for start, stop in parts)
        if stored != info[name].num_bytes:
            raise DamagedFile(f"it holds {stored} bytes of {name}, whose shape takes {info[name].num_bytes}")
    return Contents(info, extents, metadata)


def write_ckpt(path: PathLike, info: Mapping[str, TensorInfo], read: Callable[[str], Raw]) -> str:
    """Writes a `.ckpt` that `mindspore.load_checkpoint` reads, tensor by tensor: whole or not at all.

    Args:
        path: the file.
        info: the parameters, by the name they shall have in the file, in its order.
        read: gives a tensor's bytes when its turn comes; only one tensor is held at a time.

    Returns:
        The SHA-256 of the tensors' bytes, in hexadecimal (the format has no place for it).
    """
    digest = hashlib.sha256()
    with atomic_file(path) as temporary, open(temporary, "wb") as file, ThreadPoolExecutor(1) as hasher:
        for name, entry in info.items():
            raw = memoryview(read(name))
            if len(raw) != entry.num_bytes:
                raise ValueError(f"{name}: {len(raw)} bytes given for {entry.num_bytes}")
            for part, head in _slices(name, entry):
                hashed = hasher.submit(digest.update, raw[part])  # beside the writing
                file.write(head)
                file.write(raw[part])
                hashed.result()
    return digest.hexdigest()


def ckpt_bytes(info: Mapping[str, TensorInfo]) -> int:
    """The size of the file that :func:`write_ckpt` writes for these tensors."""
    return sum(part.stop - part.start + len(head) for name in info for part, head in _slices(name, info[name]))


def _slices(name: str, info: TensorInfo) -> Iterator[Tuple[slice, bytes]]:
    """The values that a tensor is stored as: which of its bytes, and what stands before them."""
    for start in range(0, max(info.num_bytes, 1), SLICE_BYTES):
        stop = min(start + SLICE_BYTES, info.num_bytes)
        yield slice(start, stop), _value_head(name, info, stop - start)


def _value_head(name: str, info: TensorInfo, content_bytes: int) -> bytes:
    """Everything of one value that stands before its content."""
    dims = b"".join(_varint(_KEY_DIM) + _varint(dim) for dim in info.shape)
    tensor = dims + _field(_KEY_TYPE, TYPE_NAMES[info.dtype].encode()) + _varint(_KEY_CONTENT) + _varint(content_bytes)
    head = _field(_KEY_TAG, name.encode()) + _varint(_KEY_TENSOR) + _varint(len(tensor) + content_bytes) + tensor
    return _varint(_KEY_VALUE) + _varint(len(head) + content_bytes) + head


def _field(key: int, content: bytes) -> bytes:
    return _varint(key) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _parse_value(data, start: int, stop: int) -> Tuple[str, str, Tuple[int, ...], Extent]:
    """Tag, element type, shape and place of the data of one value."""
    tag, tensor = None, None
    for key, first, last in _fields(data, start, stop):
        if key == _KEY_TAG:
            tag = data[first:last].decode(errors="replace")
        elif key == _KEY_TENSOR:
            tensor = _parse_tensor(data, first, last)
        elif key == _KEY_MAP_TENSOR:
            raise DamagedFile(f"{tag} is a map parameter, which is not supported")
    if tag is None or tensor is None:
        raise DamagedFile("it is not a MindSpore checkpoint")
    return (tag, *tensor)


def _parse_tensor(data, start: int, stop: int) -> Tuple[str, Tuple[int, ...], Extent]:
    dims: List[int] = []
    type_name, extent = "", (stop, stop)
    for key, first, last in _fields(data, start, stop):
        while key == _KEY_DIM_PACKED and first < last and len(dims) <= MAX_AXES:
            dim, first = _read_varint(data, first, last)
            dims.append(dim)
        if key == _KEY_DIM:
            dims.append(first)
        if len(dims) > MAX_AXES:
            raise DamagedFile(f"it has a tensor of more than {MAX_AXES} axes")
        elif key == _KEY_TYPE:
            type_name = data[first:last].decode(errors="replace")
        elif key == _KEY_CONTENT:
            extent = (first, last)
    return type_name, tuple(dims), extent


def _fields(data, start: int, stop: int) -> Iterator[Field]:
    """Walks over the fields of the message that stands in `data[start:stop]`."""
    while start < stop:
        key, start = _read_varint(data, start, stop)
        wire = key & 7
        if wire in (_VARINT, _BYTES):
            number, start = _read_varint(data, start, stop)
            if wire == _VARINT:
                yield key, number, start
                continue
        elif wire not in _FIXED:
            raise DamagedFile("it is not a MindSpore checkpoint")
        length = number if wire == _BYTES else _FIXED[wire]
        if start + length > stop:
            raise DamagedFile(f"it is truncated or damaged: the field at byte {start} is cut off at byte {stop}")
        yield key, start, start + length
        start += length


def _read_varint(data, start: int, stop: int) -> Tuple[int, int]:
    """A base-128 number and the byte after it."""
    number = 0
    for shift in range(0, 64, 7):
        if start >= stop:
            raise DamagedFile(f"it is truncated or damaged: it breaks off at byte {stop}")
        byte = data[start]
        start += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, start
    raise DamagedFile("it is not a MindSpore checkpoint")
