"""What a conversion starts from: a file of any kind or a diffusers folder, opened, and the hashes of its files.

PyTorch is imported only when a pickle is opened. `weights_only=True` builds tensors and plain containers and refuses
everything else, so code hidden in a file is never run.
"""

import ctypes
import mmap
import os
import pickle
import sys
import threading
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from gm.errors import UserError
from gm.files import open_input, parse_json, read_text, reason
from gm.weights.checkpoint import file_sha256, is_torch_pickle, open_checkpoint
from gm.weights.diffusers_names import IMAGE_ENCODER, TEXT_ENCODER, TEXT_ENCODER_2, TEXT_MODEL, UNET, VAE
from gm.weights.names import published_name
from gm.weights.tensor_source import ITEM_BYTES, TensorInfo
from svd_tools.conversion.lazy_tensor import LazyTensor, Tensors, from_source

COMPONENTS = (UNET, VAE, IMAGE_ENCODER, TEXT_ENCODER, TEXT_ENCODER_2)
LEFTOVERS_FILE = "leftovers.safetensors"  # in a folder that this program wrote: what has no place in the layout
_DIFFUSERS = dict.fromkeys((UNET, VAE), "diffusion_pytorch_model")
_TRANSFORMERS = (IMAGE_ENCODER, TEXT_ENCODER, TEXT_ENCODER_2)
_STEMS = {**_DIFFUSERS, **dict.fromkeys(_TRANSFORMERS, "model")}
_PICKLE_STEMS = {**_DIFFUSERS, **dict.fromkeys(_TRANSFORMERS, "pytorch_model")}
_BUFFERS = ("position_ids",)  # constants that older programs saved among the weights
MAX_PICKLE_BYTES = 1 << 24  # SVD's takes 0.4 MB; objects take many times the room of what builds them
_WRAPPERS = ("state_dict", "model", "module")  # where training programs put the weights


@dataclass(frozen=True)
class Weights:
    """An opened source.

    Attributes:
        path: what the user named.
        files: every weight file that belongs to it.
        tensors: the tensors, under the names that the file has (MindSpore's own names mapped to the published ones).
            In a diffusers folder each name has its sub-folder before it: "unet/conv_in.weight".
        leftovers: published tensors that a diffusers folder of ours holds beside its components.
        metadata: a single file's own text entries.
    """

    path: Path
    files: List[Path]
    tensors: Tensors
    leftovers: Tensors = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's or folder's name without its suffix."""
        return self.path.resolve().name if self.path.is_dir() else self.path.stem


def open_weights(path: Path, variant: Optional[str] = None) -> Weights:
    """Opens a checkpoint file or a diffusers folder.

    Args:
        path: safetensors, a MindSpore `.ckpt`, a PyTorch pickle, or a folder with `unet/`, `vae/` and encoders (or one
            component's own folder).
        variant: "fp16" and the like: which files of a folder to take; by default those without a variant, or else
            the only one that there is.

    Raises:
        UserError: nothing usable there.
    """
    if not path.is_dir():
        tensors, metadata = _open_file(path, path.name)
        return Weights(path, [path], tensors, metadata=metadata)
    tensors: Tensors = {}
    files: List[Path] = []
    for component, folder in _component_folders(path).items():
        for file in _weight_files(folder, component, variant):
            files.append(file)
            read, _ = _open_file(file, str(file.relative_to(path)))
            named = {_full_name(component, name): t for name, t in read.items() if not name.endswith(_BUFFERS)}
            tensors.update(named)
    leftovers: Tensors = {}
    if (path / LEFTOVERS_FILE).exists():
        files.append(path / LEFTOVERS_FILE)
        leftovers, _ = _open_file(path / LEFTOVERS_FILE, LEFTOVERS_FILE)
    return Weights(path, files, tensors, leftovers)


def _full_name(component: str, name: str) -> str:
    """With its sub-folder before it; transformers 5 saves a text encoder that has no head without a prefix."""
    bare = component == TEXT_ENCODER and not name.startswith((TEXT_MODEL, "text_projection."))
    return f"{component}/{TEXT_MODEL if bare else ''}{name}"


def component_file(component: str) -> str:
    """The name of a component's weight file in a folder that this program writes."""
    return _file_name(_STEMS[component], "safetensors")


def read_pickle(path: Path, label: str) -> Tensors:
    """The tensors of a pickled checkpoint; in PyTorch's present format they stay in the file until they are read.

    Raises:
        UserError: PyTorch is missing, the file is damaged, holds anything but tensors, or would run code.
    """
    state, records = _load(path)
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    named = state.items() if isinstance(state, Mapping) else ()
    tensors = {name: value for name, value in named if hasattr(value, "data_ptr")}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{path} holds no dictionary of tensors by their names; save the model's state_dict")
    mapped = records is not None
    lazy = {published_name(name): _lazy(tensor, f"{label}: {name}", mapped) for name, tensor in tensors.items()}
    if mapped and not _whole(tensors.values(), records):
        raise UserError(f"{path} cannot be read as a PyTorch file: it lacks bytes of a tensor; fetch or save it again")
    return lazy


class FileHashes:
    """SHA-256 of files, computed in a thread while a conversion reads the same pages, so that no pass is added.

    The thread ends with the program, also in the middle of a file.
    """

    def __init__(self, files: Sequence[Path]):
        self._hashes: Dict[Path, str] = {}
        self._error: Optional[UserError] = None
        self._thread = threading.Thread(target=self._run, args=(files,), daemon=True)
        self._thread.start()

    def wait(self) -> Dict[Path, str]:
        """File → hexadecimal hash, once all are known. Raises a UserError if a file could not be read."""
        self._thread.join()
        if self._error:
            raise self._error
        return self._hashes

    def _run(self, files: Sequence[Path]) -> None:
        try:
            self._hashes.update((path, file_sha256(path)) for path in files)
        except OSError as error:
            self._error = UserError(f"cannot read {error.filename}: {reason(error)}")


def _open_file(path: Path, label: str) -> Tuple[Tensors, Mapping[str, str]]:
    if is_torch_pickle(path):
        return read_pickle(path, label), {}
    source = open_checkpoint(path)
    return from_source(source, label), source.metadata


def _component_folders(path: Path) -> Dict[str, Path]:
    """The component folders in a diffusers folder; a UNet's own folder counts as one."""
    folders = {component: path / component for component in COMPONENTS if (path / component).is_dir()}
    if not folders and any(path.glob(f"{_STEMS[UNET]}*")):
        folders = {UNET: path}
    if not folders:
        raise UserError(f"{path} is no diffusers folder: it has none of {', '.join(COMPONENTS)}; check the path")
    return folders


def _weight_files(folder: Path, component: str, variant: Optional[str]) -> List[Path]:
    """The weight files of one component: safetensors before pickles, one file or the shards of an index."""
    for stem, suffix in ((_STEMS[component], "safetensors"), (_PICKLE_STEMS[component], "bin")):
        for chosen in _variants(folder, stem, suffix, variant):
            single = folder / _file_name(stem, chosen, suffix)
            index = folder / _file_name(stem, suffix, "index", chosen, "json")
            if single.exists():
                return [single]
            if index.exists():
                return _shards(index)
    name = _file_name(_STEMS[component], variant or "", "safetensors")
    raise UserError(f"{folder} holds no weights: there is no {name}; check the folder and --variant")


def _variants(folder: Path, stem: str, suffix: str, variant: Optional[str]) -> List[str]:
    """The variants to look for, in order: the one asked for; or none, then each that the folder has."""
    if variant:
        return [variant]
    singles = {p.name[len(stem) + 1 : -len(suffix) - 1] for p in folder.glob(f"{stem}.*.{suffix}")}
    indices = {p.name.split(".")[-2] for p in folder.glob(f"{stem}.{suffix}.index.*.json")}
    return ["", *sorted(singles | indices)]


def _file_name(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _shards(index: Path) -> List[Path]:
    try:
        weight_map = parse_json(read_text(index))["weight_map"]
        names = sorted(set(weight_map.values()))
        return [index.parent / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read as a list of shards ({error}); fetch it again") from error


def _load(path: Path) -> Tuple[Any, Optional[Counter]]:
    """What the file holds; and the sizes of its records, if its tensors are mapped from them."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} is a PyTorch pickle: reading it takes PyTorch; run `pip install torch`") from error
    try:
        records = _records(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=records is not None), records
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than tensors and may run code when it is opened; "
            "get the weights as safetensors from a source that you trust"
        ) from error
    except Exception as error:  # whatever PyTorch's own unpickler meets in a damaged file
        problem = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as a PyTorch file: {problem}; fetch or save it again") from error


def _records(path: Path) -> Optional[Counter]:
    """How many records of each size, in bytes, an archive has; None for the old format, which is none.

    Raises:
        ValueError: what is built from it may be larger than the file.
    """
    with open_input(path) as file:
        if not zipfile.is_zipfile(file):
            return None
        entries = zipfile.ZipFile(file).infolist()
        size = file.seek(0, os.SEEK_END)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise ValueError("it is a compressed archive, which PyTorch does not write")
    if any(entry.file_size > MAX_PICKLE_BYTES for entry in entries if entry.filename.endswith(".pkl")):
        raise ValueError(f"its list of tensors takes more than {MAX_PICKLE_BYTES} bytes")
    return Counter(entry.file_size for entry in entries)


def _whole(tensors: Iterable[Any], records: Counter) -> bool:
    """Whether each tensor's storage has a record of its own size; PyTorch maps it without looking."""
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors) if s.nbytes()}
    return not Counter(storages.values()) - records


def _lazy(tensor: Any, origin: str, mapped: bool) -> LazyTensor:
    import torch

    plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_nested
    num_bytes = tensor.numel() * tensor.element_size() if plain else 0
    if not plain or num_bytes > tensor.untyped_storage().nbytes():
        raise UserError(f"{origin} does not store each of its numbers; save it as a contiguous tensor")

    def load() -> memoryview:
        flat = tensor.detach().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy())

    def release() -> None:
        if mapped:
            _unload_pages(tensor.data_ptr(), num_bytes)

    return LazyTensor(TensorInfo(_dtype_name(str(tensor.dtype)), tuple(tensor.shape)), origin, load, release)


def _dtype_name(torch_name: str) -> str:
    """ "torch.float32" → "F32"."""
    dtype = torch_name.partition(".")[2].replace("e4m3fn", "e4m3").upper()
    for word, letter in (("FLOAT", "F"), ("UINT", "U"), ("INT", "I")):
        dtype = dtype.replace(word, letter)
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
