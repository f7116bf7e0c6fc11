"""Opening a checkpoint of any supported kind, and holding its tensors against what a network wants."""

import hashlib
import mmap
from pathlib import Path

from gm.errors import UserError
from gm.files import PathLike, open_input, reason
from gm.weights.ckpt_file import parse_ckpt
from gm.weights.names import compare_names, published_name
from gm.weights.safetensors_file import LENGTH_BYTES, parse_safetensors, save_safetensors
from gm.weights.tensor_source import DamagedFile, TensorInfo, TensorSource

__all__ = [
    "TensorInfo",
    "TensorSource",
    "compare_names",
    "file_sha256",
    "is_torch_pickle",
    "open_checkpoint",
    "save_safetensors",
]

CONVERT = "python svd_tools/convert.py --pt_weights_file="  # the remedy for what cannot be read directly
_HASH_BLOCK = 1 << 20
PROTOBUF_FIRST = b"\n"  # field 1, length-delimited: the first byte of every MindSpore .ckpt
_PICKLE_MARKS = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))
_NO_CHECKPOINT = "not a checkpoint: neither safetensors nor a MindSpore .ckpt"
_STRAY_FILES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"<!doctype html": "a web page, not a checkpoint; download the file itself",
    b"<html": "a web page, not a checkpoint; download the file itself",
}


def open_checkpoint(path: PathLike) -> TensorSource:
    """Opens a checkpoint, memory-mapped; its content decides what it is, not its suffix.

    Safetensors files and MindSpore `.ckpt` files are read. Names are the published ones (:mod:`gm.weights.names`).

    Raises:
        UserError: missing, unreadable, a folder, empty, truncated, damaged, of a kind that has to be converted first
            (PyTorch pickles, diffusers folders), or no checkpoint at all.
    """
    path = Path(path)
    mapping = _map_file(path)
    start = bytes(mapping[:64])
    if start.startswith(_PICKLE_MARKS):
        raise UserError(f"{path} is a PyTorch pickle; convert it first: {CONVERT}{path}")
    try:
        return TensorSource(path, mapping, _parser(start)(mapping, published_name))
    except DamagedFile as error:
        raise UserError(f"{path} cannot be read: {error}; fetch or save it again") from error


def is_torch_pickle(path: PathLike) -> bool:
    """Whether there is a file that looks as if `torch.save` wrote it, in its present or its old format."""
    try:
        with open_input(path) as file:
            return file.read(4).startswith(_PICKLE_MARKS)
    except OSError:
        return False


def file_sha256(path: PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open_input(path) as file:
        for block in iter(lambda: file.read(_HASH_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _map_file(path: Path) -> mmap.mmap:
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file; convert a diffusers folder with {CONVERT}{path}")
    try:
        with open_input(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}; check the path") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:  # mmap's word for a file without a byte
        raise UserError(f"{path} is empty; fetch or save it again") from error


def _parser(start: bytes):
    """The format that a file of this beginning has. Raises DamagedFile if it has none."""
    for mark, what in _STRAY_FILES.items():
        if start.lower().startswith(mark):
            raise DamagedFile(f"it is {what}")
    if start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{":
        return parse_safetensors
    if start.startswith(PROTOBUF_FIRST):
        return parse_ckpt
    raise DamagedFile(f"it is {_NO_CHECKPOINT}")
