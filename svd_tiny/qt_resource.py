"""Qt's compiled resource files (.rcc): the photographs of some programs lie inside one."""

import struct
import zlib
from functools import lru_cache
from typing import Dict, Iterator, Tuple

from gm.errors import UserError
from gm.files import PathLike, open_input, reason

MAGIC = b"qres"
HEADER = struct.Struct(">4I")  # format version, then where the tree, the data and the names start
NODE = struct.Struct(">IH")  # where the name stands, flags
NODE_SIZE = {1: 14, 2: 22, 3: 22}  # bytes of a tree node, by format version; from 2 on each ends with a date
ZLIB, FOLDER, ZSTD = 1, 2, 4  # flags of a node


@lru_cache(maxsize=64)
def read_qt_resource(path: PathLike) -> Dict[str, bytes]:
    """All files inside a .rcc file.

    Args:
        path: the .rcc file, of format version 1 to 3.

    Returns:
        {path inside, without a leading slash: content}; entries packed with Zstandard are left out.

    Raises:
        UserError: the file cannot be read or is not such a file.
    """
    try:
        with open_input(path) as file:
            blob = file.read()
        return dict(_walk(blob, *_header(blob), node=0, folder=""))
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except (struct.error, KeyError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"cannot read {path}: it is no Qt resource file (.rcc)") from error


def _header(blob: bytes) -> Tuple[int, int, int, int]:
    """(bytes of a node, start of the tree, of the data, of the names)."""
    if blob[:4] != MAGIC:
        raise KeyError(MAGIC)
    version, tree, data, names = HEADER.unpack_from(blob, 4)
    return NODE_SIZE[version], tree, data, names


def _walk(
    blob: bytes, node_size: int, tree: int, data: int, names: int, node: int, folder: str
) -> Iterator[Tuple[str, bytes]]:
    position = tree + node * node_size
    name_offset, flags = NODE.unpack_from(blob, position)
    path = f"{folder}/{_name(blob, names + name_offset)}".lstrip("/") if node else ""
    if flags & FOLDER:
        count, first = struct.unpack_from(">II", blob, position + NODE.size)
        for child in range(first, first + count):
            yield from _walk(blob, node_size, tree, data, names, child, path)
    elif not flags & ZSTD:
        (offset,) = struct.unpack_from(">I", blob, position + NODE.size + 4)  # after the territory and the language
        yield path, _content(blob, data + offset, flags)


def _name(blob: bytes, position: int) -> str:
    (length,) = struct.unpack_from(">H", blob, position)
    start = position + 6  # 2 bytes of length, 4 of a hash
    return blob[start : start + 2 * length].decode("utf-16-be")


def _content(blob: bytes, position: int, flags: int) -> bytes:
    (size,) = struct.unpack_from(">I", blob, position)
    content = blob[position + 4 : position + 4 + size]
    return zlib.decompress(content[4:]) if flags & ZLIB else content  # 4 bytes: the size when unpacked
