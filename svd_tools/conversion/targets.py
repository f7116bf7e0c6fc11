"""What a conversion writes: one file, or a diffusers folder."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Sequence

from tqdm import tqdm

from gm.errors import UserError
from gm.files import atomic_dir
from gm.weights.ckpt_file import TYPE_NAMES, ckpt_bytes, write_ckpt
from gm.weights.diffusers_names import is_unused, placeless
from gm.weights.names import to_reference
from gm.weights.safetensors_file import write_safetensors
from gm.weights.tensor_source import Raw
from svd_tools.conversion.diffusers_layout import to_diffusers
from svd_tools.conversion.lazy_tensor import DTYPES, Tensors, cast, count_not_finite, infos
from svd_tools.conversion.weight_files import COMPONENTS, LEFTOVERS_FILE, component_file

ALLOW_NONFINITE = "--allow_nonfinite"
KEEP = "keep"  # --dtype: as it is
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Files to be written, all of them or none.

    Attributes:
        path: the file or the folder that appears.
        files: path inside the folder ("" where `path` is a file itself) → its tensors, under the names they get.
        texts: path inside the folder → a text file's content.
    """

    path: Path
    files: Dict[str, Tensors]
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Room that the target takes, up to the little that headers take."""
        if self.path.suffix == ".ckpt":
            return sum(ckpt_bytes(infos(tensors)) for tensors in self.files.values())
        return sum(tensor.info.num_bytes for tensors in self.files.values() for tensor in tensors.values())


def new_file(path: str, suffixes: Sequence[str]) -> Path:
    """The path given as --out; raises a UserError unless it has one of the suffixes and nothing is there yet."""
    out = Path(path)
    if out.suffix not in suffixes:
        raise UserError(f"--out: {out} should end in {' or '.join(suffixes)}")
    if os.path.lexists(out):
        raise UserError(f"--out: {out} exists already; remove it or name another file")
    return out


def single_file_target(path: Path, published: Tensors, dtype: str, leftovers: bool) -> Target:
    """All tensors in one file: a `.ckpt` with the reference toolkit's names, else safetensors.

    Args:
        leftovers: whether the tensors that no program reads are written too.
    """
    rename = to_reference if path.suffix == ".ckpt" else str
    kept = {rename(name): tensor for name, tensor in published.items() if leftovers or not is_unused(name)}
    tensors = _in_dtype(kept, dtype)
    unknown = [name for name, tensor in tensors.items() if tensor.info.dtype not in TYPE_NAMES]
    if unknown and path.suffix == ".ckpt":
        raise UserError(
            f"--dtype: a .ckpt cannot hold {tensors[unknown[0]].info.dtype}, as {unknown[0]} is stored; --dtype=fp16 "
            "widens it, and a safetensors file keeps it"
        )
    return Target(path, {"": tensors})


def diffusers_target(path: Path, published: Tensors, dtype: str, leftovers: bool, texts: Mapping[str, str]) -> Target:
    """A diffusers folder.

    Args:
        leftovers: whether what has no place in the layout is written into a file of its own beside the components,
            from which the conversion back takes it.
        texts: the folder's JSON files.
    """
    there = to_diffusers(published)
    files = {}
    for component in COMPONENTS:
        prefix = f"{component}/"
        own = {name[len(prefix) :]: tensor for name, tensor in there.items() if name.startswith(prefix)}
        if own:
            files[prefix + component_file(component)] = own
    if leftovers:
        without = placeless(published)
        files[LEFTOVERS_FILE] = {name: tensor for name, tensor in published.items() if name in without}
    return Target(path, {name: _in_dtype(tensors, dtype) for name, tensors in files.items()}, texts)


def write_target(
    target: Target,
    metadata: Mapping[str, str],
    late_metadata: Callable[[], Mapping[str, str]],
    show_progress: bool,
    allow_nonfinite: bool = False,
) -> Dict[str, str]:
    """Writes a target, whole or not at all.

    Args:
        allow_nonfinite: tensors that hold NaN or infinite values are written with a warning.

    Returns:
        File inside the target → SHA-256 of its tensors' bytes.

    Raises:
        UserError: such a tensor, or the target cannot be written.
    """
    total = sum(tensor.info.num_bytes for tensors in target.files.values() for tensor in tensors.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=not show_progress) as bar:

        def write(path: Path, tensors: Tensors) -> str:
            read = _reader(tensors, bar, allow_nonfinite)
            if path.suffix == ".ckpt":
                return write_ckpt(path, infos(tensors), read)
            return write_safetensors(path, infos(tensors), read, metadata, late_metadata)

        if "" in target.files:
            return {"": write(target.path, target.files[""])}
        with atomic_dir(target.path) as folder:
            for name, text in target.texts.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8")
            return {name: write(folder / name, tensors) for name, tensors in target.files.items()}


def _in_dtype(tensors: Tensors, dtype: str) -> Tensors:
    if dtype == KEEP:
        return tensors
    return {name: cast(tensor, DTYPES[dtype]) for name, tensor in tensors.items()}


def _reader(tensors: Tensors, bar: tqdm, allow_nonfinite: bool) -> Callable[[str], Raw]:
    """Reads tensors by name, one after the other; each gives back the memory of the one before."""
    release: List[Callable[[], None]] = []

    def read(name: str) -> Raw:
        while release:
            release.pop()()
        tensor = tensors[name]
        raw = tensor.load()
        release.append(tensor.release)
        nan, infinite = count_not_finite(raw, tensor.info)
        if nan or infinite:
            found = f"{name} (from {tensor.origin}) has {nan} NaN and {infinite} infinite values"
            if not allow_nonfinite:
                raise UserError(
                    f"{found}: nothing is written; fetch or merge the weights again (fp16 holds numbers up to 65504 "
                    f"only, see --dtype), or write them as they are with {ALLOW_NONFINITE}"
                )
            _log.warning("%s among %s", found, tensor.info.shape)
        bar.update(tensor.info.num_bytes)
        return raw

    return read
