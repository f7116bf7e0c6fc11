"""LoRA files, and a checkpoint read as if a LoRA had been merged into it.

A file of train.py's holds, for each adapted layer `X.weight` of the UNet, `X.lora_A.weight` (r, in), `X.lora_B.weight`
(out, r) and the number `X.alpha`, X being the published name without the leading `model.`:
`diffusion_model.input_blocks.1.1.…`. ComfyUI reads such a file as it is (its "generic lora format", comfy/lora.py).
Files of other programs are read too (:mod:`gm.weights.lora_layouts`); svd_tools/convert_lora.py writes diffusers'.
"""

from math import prod
from pathlib import Path
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from gm.errors import UserError
from gm.files import PathLike
from gm.weights.checkpoint import open_checkpoint
from gm.weights.lora_layouts import DOWN, SCALE, UP, Layer, known_layers, parse_name, stacked, weight_of
from gm.weights.lora_scaling import read_scaling, weights_file
from gm.weights.names import in_a_file
from gm.weights.safetensors_file import save_safetensors
from gm.weights.tensor_source import TensorInfo, TensorSource

DROPPED = "model."  # what published names have before those in the file
UNET = "diffusion_model."
A, B, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
FP32_BYTES = 4
MAX_NAMES = 5  # in an error line


class LowRank(NamedTuple):
    """One layer's branch: (α/r)·B A is what it adds to the layer's weight."""

    a: np.ndarray  # (r, in)
    b: np.ndarray  # (out, r)
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return len(self.a)

    def delta(self) -> np.ndarray:
        """(out, in), fp64."""
        return (self.alpha / self.rank) * (self.b.astype(np.float64) @ self.a.astype(np.float64))


class LoRA(NamedTuple):
    """What a LoRA file holds."""

    path: Path
    layers: Dict[str, LowRank]  # by the published name of the layer, without `.weight`
    metadata: Mapping[str, str]
    note: str = ""  # on an alpha that is not among the tensors

    def check(self, info: Mapping[str, TensorInfo]) -> None:
        """Holds the LoRA against a checkpoint's tensors.

        Raises:
            UserError: it was trained on another model: every layer that the checkpoint lacks or has in another shape.
        """
        shapes = {weight_of(name): (len(layer.b), layer.a.shape[1]) for name, layer in self.layers.items()}
        lines = []
        for name, shape in shapes.items():
            if name not in info:
                lines.append(f"missing: {name} {shape}")
            elif (info[name].shape[0], prod(info[name].shape[1:])) != shape:
                lines.append(f"shape: {name} is {info[name].shape}, the LoRA is for {shape}")
        if lines:
            count = f"{len(lines)} of its {len(self.layers)} layers do not fit"
            raise UserError(f"{self.path} is a LoRA of another model: {count}; {in_a_file(lines)}")


def is_lora_name(name: str) -> bool:
    """Whether a parameter of a network, or a tensor of a file, is an A or a B."""
    return name.endswith((A, B))


class LoRAWriter:
    """Writes a trained LoRA alone (a :class:`gm.weights.parameters.WeightsWriter`).

    Args:
        alpha: of all layers.
        targets: what was adapted, for the file's metadata.
        prefix: of the network's names in the published names.
    """

    file_name = "lora.safetensors"

    def __init__(self, alpha: float, targets: str, prefix: str = DROPPED + UNET) -> None:
        self.alpha, self.targets, self.prefix = alpha, targets, prefix

    def num_bytes(self, shapes: Mapping[str, tuple]) -> int:
        """Size of the file to come, for A and B of these shapes."""
        return sum(FP32_BYTES * prod(shape) for shape in shapes.values())

    def write(self, folder: Path, values: Mapping[str, Callable[[], np.ndarray]], metadata: Mapping[str, str]) -> Path:
        """Writes `folder/file_name`: values give A and B by their names in the network; metadata are text entries."""
        layers = {}
        for stem in [name[: -len(A)] for name in values if name.endswith(A)]:
            layers[self.prefix + stem] = LowRank(values[stem + A](), values[stem + B](), self.alpha)
        write_lora(folder / self.file_name, layers, {"targets": self.targets, **metadata})
        return folder / self.file_name


def write_lora(path: PathLike, layers: Mapping[str, LowRank], metadata: Mapping[str, str]) -> None:
    """Writes a LoRA file, whole or not at all, in fp32.

    Args:
        layers: by the published name of the layer, without `.weight`.
        metadata: text entries; `rank` and `alpha` are added where they are the same in all layers.
    """
    tensors = {}
    for name, layer in layers.items():
        stem = name[len(DROPPED) :]
        tensors[stem + A] = layer.a.astype(np.float32, copy=False)
        tensors[stem + B] = layer.b.astype(np.float32, copy=False)
        tensors[stem + ALPHA] = np.array(layer.alpha, np.float32)
    values = {"rank": {layer.rank for layer in layers.values()}, "alpha": {layer.alpha for layer in layers.values()}}
    common = {key: str(value.pop()) for key, value in values.items() if len(value) == 1}
    save_safetensors(path, tensors, {**common, **metadata})


def read_lora(
    path: PathLike, wanted: Optional[Mapping[str, Tuple[int, ...]]] = None, alpha: Optional[float] = None
) -> LoRA:
    """Reads a LoRA file of any known layout, or a folder of PEFT's.

    Args:
        wanted: the network's parameters, published name → shape; without them only this toolkit's layout is understood.
        alpha: of all layers, for a file that keeps it nowhere; by default the rank.

    Raises:
        UserError: the file cannot be read, holds no LoRA or other tensors too, or layers that the network lacks.
    """
    path = weights_file(Path(path))
    known, assumed = known_layers(wanted or {}), []
    parts: Dict[Layer, Dict[str, np.ndarray]] = {}
    with open_checkpoint(path) as source:
        entries = {name: parse_name(name) for name in source.info}
        if not any(entry is not None and entry.part != SCALE for entry in entries.values()):
            raise UserError(f"{source.path} holds no LoRA; name one, which has lora_A or lora_down in its names")
        _refuse(path, [name for name, entry in entries.items() if entry is None], "tensors that are no LoRA's")
        layers = {e.layer: known.get(e.layer) or _own_layer(e.layer) for e in entries.values()}
        _refuse(path, [name for name, layer in layers.items() if layer is None], "layers that the network lacks")
        scaling = read_scaling(path, source.metadata, alpha)
        for name, entry in entries.items():
            parts.setdefault(layers[entry.layer], {})[entry.part] = np.array(source.read(name))
        for name, layer in layers.items():
            if SCALE not in parts[layer] and DOWN in parts[layer]:
                parts[layer][SCALE] = np.array(scaling.alpha(name, len(parts[layer][DOWN])))
                assumed.append(float(parts[layer][SCALE]))
        half = [layer.name for layer, have in parts.items() if not {DOWN, UP} <= set(have)]
        _refuse(path, half, "layers without an A or a B")
        branches: Dict[str, Dict[Layer, LowRank]] = {}
        for layer, have in parts.items():
            branch = low_rank(have[DOWN], have[UP], have.get(SCALE), f"{path}: {layer.name}")
            branches.setdefault(layer.name, {})[layer] = branch
        joined = {name: _joined(own) for name, own in branches.items()}
        return LoRA(path, joined, source.metadata, scaling.note(assumed))


def _own_layer(name: str) -> Optional[Layer]:
    """What a layer of this toolkit's layout is, whether the network has it or not."""
    return Layer(DROPPED + name) if name.startswith(UNET) else None


def _joined(branches: Mapping[Layer, LowRank]) -> LowRank:
    """One branch for a tensor, from those of its parts."""
    layer, branch = next(iter(branches.items()))
    if layer.parts == 1:
        return branch
    scaled = {part.part: (low.a, low.b * np.float32(low.alpha / low.rank)) for part, low in branches.items()}
    a, b = stacked(scaled, layer.parts)
    return LowRank(a, b, float(len(a)))


def _refuse(path: PathLike, names: List[str], what: str) -> None:
    if names:
        shown = ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
        raise UserError(f"{path} has {len(names)} {what}: {shown}")


def low_rank(a: np.ndarray, b: np.ndarray, alpha: Optional[np.ndarray], what: str) -> LowRank:
    """A layer's branch as a file holds it, a convolution's as matrices; without an alpha it is the rank.

    Raises:
        UserError: not (r, in), (out, r) and one number, or anything but finite floating-point numbers; `what` names it.
    """
    a, b = (x.reshape(len(x), -1) if x.ndim == 4 else x for x in (a, b))  # of a convolution: r i k k, and o r 1 1
    if a.ndim != 2 or b.ndim != 2 or not 0 < len(a) == b.shape[1]:
        raise UserError(f"{what} has A {a.shape} and B {b.shape}, which are not (r, in) and (out, r)")
    alpha = np.array(float(len(a))) if alpha is None else alpha
    if alpha.size != 1 or not all(x.dtype.kind == "f" for x in (a, b)) or alpha.dtype.kind not in "fiu":
        raise UserError(f"{what} has other values than floating-point numbers and one alpha; fetch or save it again")
    if not all(np.isfinite(x).all() for x in (a, b, alpha)):
        raise UserError(f"{what} has NaN or infinite values; fetch or train it again")
    return LowRank(a, b, float(alpha.item()))


class MergedSource(TensorSource):
    """A checkpoint with a LoRA merged into it: W + scale·(α/r)·B A, computed when a tensor is read.

    Merged tensors are new fp32 arrays, rounded once from fp64; all others stay views of the memory map, which is never
    written to; `read_raw` gives what is stored.

    Args:
        source: the open checkpoint; this closes it.
        lora: what is merged; it must fit.
        scale: how strongly: 0 is the checkpoint itself, 1 the LoRA as it was trained.

    Raises:
        UserError: the LoRA is of another model.
    """

    def __init__(self, source: TensorSource, lora: LoRA, scale: float = 1.0) -> None:
        lora.check(source.info)
        super().__init__(source.path, source.mapping, source.contents)
        self.scale = scale
        self.deltas = {weight_of(name): layer for name, layer in lora.layers.items()} if scale else {}

    def read(self, name: str) -> np.ndarray:
        weight = super().read(name)
        if name not in self.deltas:
            return weight
        return (weight + self.scale * self.deltas[name].delta().reshape(weight.shape)).astype(np.float32)
