"""Finding and opening what a conversion starts from: a file of any kind, or a diffusers folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

from gm.errors import UserError
from gm.files import parse_json, read_text
from gm.weights.checkpoint import is_torch_pickle, open_checkpoint
from svd_tools.conversion.key_map import IMAGE_ENCODER, UNET, VAE
from svd_tools.conversion.lazy_tensor import Tensors, from_source
from svd_tools.conversion.pickle_source import read_pickle

COMPONENTS = (UNET, VAE, IMAGE_ENCODER)
LEFTOVERS_FILE = "leftovers.safetensors"  # in a folder that this program wrote: what has no place in the layout
_STEMS = {UNET: "diffusion_pytorch_model", VAE: "diffusion_pytorch_model", IMAGE_ENCODER: "model"}
_PICKLE_STEMS = {**_STEMS, IMAGE_ENCODER: "pytorch_model"}
_BUFFERS = ("position_ids",)  # constants that older programs saved among the weights


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
    leftovers: Tensors
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        """The file's or folder's name without its suffix."""
        return self.path.resolve().name if self.path.is_dir() else self.path.stem


def open_weights(path: Path, variant: Optional[str] = None) -> Weights:
    """Opens a checkpoint file or a diffusers folder.

    Args:
        path: safetensors, a MindSpore `.ckpt`, a PyTorch pickle, or a folder with `unet/`, `vae/`, `image_encoder/`
            (or one component's own folder).
        variant: "fp16" and the like: which files of a folder to take; by default those without a variant, or else
            the only one that there is.

    Raises:
        UserError: nothing usable there.
    """
    if not path.is_dir():
        tensors, metadata = _open_file(path, path.name)
        return Weights(path, [path], tensors, {}, metadata)
    tensors: Tensors = {}
    files: List[Path] = []
    for component, folder in _component_folders(path).items():
        for file in _weight_files(folder, component, variant):
            files.append(file)
            read, _ = _open_file(file, str(file.relative_to(path)))
            tensors.update({f"{component}/{name}": t for name, t in read.items() if not name.endswith(_BUFFERS)})
    leftovers: Tensors = {}
    if (path / LEFTOVERS_FILE).exists():
        files.append(path / LEFTOVERS_FILE)
        leftovers, _ = _open_file(path / LEFTOVERS_FILE, LEFTOVERS_FILE)
    return Weights(path, files, tensors, leftovers, {})


def component_file(component: str) -> str:
    """The name of a component's weight file in a folder that this program writes."""
    return _file_name(_STEMS[component], "safetensors", None)


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
            single = folder / _file_name(stem, suffix, chosen)
            index = folder / _index_name(stem, suffix, chosen)
            if single.exists():
                return [single]
            if index.exists():
                return _shards(index)
    name = _file_name(_STEMS[component], "safetensors", variant)
    raise UserError(f"{folder} holds no weights: there is no {name}; check the folder and --variant")


def _variants(folder: Path, stem: str, suffix: str, variant: Optional[str]) -> List[Optional[str]]:
    """The variants to look for, in order: the one asked for; or none, then each that the folder has."""
    if variant:
        return [variant]
    singles = {p.name[len(stem) + 1 : -len(suffix) - 1] for p in folder.glob(f"{stem}.*.{suffix}")}
    indices = {p.name.split(".")[-2] for p in folder.glob(f"{stem}.{suffix}.index.*.json")}
    return [None, *sorted(singles | indices)]


def _file_name(stem: str, suffix: str, variant: Optional[str]) -> str:
    return f"{stem}.{variant}.{suffix}" if variant else f"{stem}.{suffix}"


def _index_name(stem: str, suffix: str, variant: Optional[str]) -> str:
    return f"{stem}.{suffix}.index.{variant}.json" if variant else f"{stem}.{suffix}.index.json"


def _shards(index: Path) -> List[Path]:
    try:
        weight_map = parse_json(read_text(index))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read as a list of shards ({error}); fetch it again") from error
    return [index.parent / Path(name).name for name in names]
