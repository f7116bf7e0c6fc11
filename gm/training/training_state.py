"""A checkpoint: the weights for users, and all that a run needs to go on as if it had not been interrupted.

model.safetensors (or lora.safetensors)  the trained weights, averaged if there is an average, for other programs
state.safetensors                        weight.NAME, adam_m.NAME, adam_v.NAME and average.NAME of what is trained
state.json                               the position in the run, the loss scale, and what the run is
"""

import json
from math import prod
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

import numpy as np
from mindspore import Parameter, Tensor

from gm.checkpoints.checkpoint import open_checkpoint
from gm.checkpoints.safetensors_file import array_bytes, write_safetensors
from gm.checkpoints.tensor_source import TensorInfo
from gm.checkpoints.weights import set_parameter
from gm.checkpoints.weights_writer import WeightsWriter
from gm.errors import UserError
from gm.files import PathLike, atomic_dir, atomic_file, parse_json, read_text, require_free_space
from gm.training.ema import PREFIX as AVERAGE

RESUME = "--train.resume"
TENSORS, NUMBERS = "state.safetensors", "state.json"
FORMAT = 1  # raised when the files change their meaning
WEIGHT = "weight"
FP32_BYTES = 4


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], writer: WeightsWriter
) -> None:
    """Writes a checkpoint's folder: whole or not at all.

    Args:
        tensors: `weight.NAME`, `adam_m.NAME`, …; each is copied to the host when its turn comes.
        numbers: what JSON can hold.
        writer: of the weights for users.

    Raises:
        UserError: no room, or the folder cannot be written.
    """
    shapes = {name[len(WEIGHT) + 1 :]: p.shape for name, p in tensors.items() if name.startswith(f"{WEIGHT}.")}
    state_bytes = sum(prod(tensor.shape) * FP32_BYTES for tensor in tensors.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    require_free_space(path.parent, state_bytes + writer.num_bytes(shapes), "the checkpoint")
    kind = AVERAGE if any(name.startswith(f"{AVERAGE}.") for name in tensors) else WEIGHT
    values = {name: tensors[f"{kind}.{name}"].asnumpy for name in shapes}
    with atomic_dir(path) as folder:
        writer.write(folder, values, {"step": str(numbers["step"]), "weights": f"{kind}s of the training run"})
        info = {name: TensorInfo("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
        write_safetensors(folder / TENSORS, info, lambda name: array_bytes(tensors[name].asnumpy()), {})
        with atomic_file(folder / NUMBERS) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **numbers}, indent=1))


def read_numbers(path: Path) -> Dict[str, Any]:
    """A checkpoint's `state.json`.

    Raises:
        UserError: the folder is no checkpoint, or one that another version wrote.
    """
    try:
        numbers = parse_json(read_text(path / NUMBERS))
        if numbers["format"] == FORMAT:
            return numbers
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{RESUME}: {path} is no checkpoint that can be resumed: {NUMBERS} cannot be read") from error
    raise UserError(f"{RESUME}: {path} was written by another version of this program (format {numbers['format']})")


def check_identity(path: Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuses to go on with another run's checkpoint.

    Args:
        saved, present: what the checkpoint's run was and what this one is: setting -> value.

    Raises:
        UserError: they differ; the first difference is named.
    """
    for name in {**saved, **present}:
        was, now = saved.get(name), present.get(name)
        if was != json.loads(json.dumps(now)):
            raise UserError(
                f"{RESUME}: {path} is of a run with {name}={_short(was)}, this one has {_short(now)}; use the same, or "
                "start anew from its weights with --train.pretrained"
            )


def read_tensors(path: PathLike, tensors: Mapping[str, Parameter], shapes: Mapping[str, Tuple[int, ...]]) -> None:
    """Sets parameters from a checkpoint's `state.safetensors`, each with memory of its own.

    Args:
        tensors: what is read: name -> parameter.
        shapes: of what the file has to hold beside these: other devices' shares.

    Raises:
        UserError: its tensors are not these.
    """
    with open_checkpoint(Path(path) / TENSORS) as source:
        stored = {name: info.shape for name, info in source.info.items()}
        wanted = {**shapes, **{name: tuple(parameter.shape) for name, parameter in tensors.items()}}
        different = sorted(name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name))
        if different:
            raise UserError(
                f"{RESUME}: {path} is of another model: {len(different)} tensors differ, the first being {different[0]}"
            )
        for name, parameter in tensors.items():
            set_parameter(parameter, np.array(source.read(name)))
            source.release(name)


def _short(value: Any, width: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= width else text[: width - 1] + "…"
