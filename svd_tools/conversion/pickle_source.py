"""PyTorch's pickled checkpoints (`.ckpt`, `.pt`, `.bin`), without running what is in them.

PyTorch is imported only when such a file is opened. `weights_only=True` builds tensors and plain containers and
refuses everything else, so code hidden in a file is never run.
"""

import ctypes
import mmap
import pickle
import sys
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

from gm.errors import UserError
from gm.weights.names import from_reference
from gm.weights.tensor_source import ITEM_BYTES, TensorInfo
from svd_tools.conversion.lazy_tensor import LazyTensor, Tensors

_WRAPPERS = ("state_dict", "model", "module")  # where training programs put the weights
_NAMES = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL"}
_LETTERS = {"bfloat": "BF", "float": "F", "uint": "U", "int": "I"}


def read_pickle(path: Path, label: str) -> Tensors:
    """The tensors of a pickled checkpoint; in PyTorch's present format they stay in the file until they are read.

    Raises:
        UserError: PyTorch is missing, the file is damaged, holds anything but tensors, or would run code.
    """
    state, mapped = _load(path)
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    tensors = _tensors_of(state)
    if not tensors:
        raise UserError(f"{path} holds no dictionary of tensors; save the model's state_dict")
    return {from_reference(name): _lazy(tensor, f"{label}: {name}", mapped) for name, tensor in tensors.items()}


def _load(path: Path) -> Tuple[Any, bool]:
    """What the file holds, and whether its tensors are mapped from the file."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} is a PyTorch pickle: reading it takes PyTorch; run `pip install torch`") from error
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True), False  # the old format is not mappable
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than tensors and may run code when it is opened; "
            "get the weights as safetensors from a source that you trust"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a PyTorch file: {str(error).splitlines()[0]}") from error


def _tensors_of(state: Any) -> Dict[str, Any]:
    import torch

    if not isinstance(state, Mapping):
        return {}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _lazy(tensor: Any, origin: str, mapped: bool) -> LazyTensor:
    import torch

    def load() -> memoryview:
        flat = tensor.detach().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy())

    def release() -> None:
        if mapped:
            _unload_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())

    return LazyTensor(TensorInfo(_dtype_name(str(tensor.dtype)), tuple(tensor.shape)), origin, load, release)


def _dtype_name(torch_name: str) -> str:
    """ "torch.float32" → "F32"."""
    name = torch_name.partition(".")[2]
    if name in _NAMES:
        return _NAMES[name]
    kind = name.rstrip("0123456789")
    dtype = _LETTERS.get(kind, "?") + name[len(kind) :]
    if dtype not in ITEM_BYTES:
        raise UserError(f"tensors of the type {torch_name} are not supported")
    return dtype


def _unload_pages(address: int, num_bytes: int) -> None:
    """Takes pages mapped from a file out of this process's memory; reading them again fetches them from the file."""
    if not sys.platform.startswith("linux"):
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + num_bytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
