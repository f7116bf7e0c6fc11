"""A run's checkpoints: a folder each, complete or absent, the newest few kept.

model.safetensors (or lora.safetensors)  the trained weights, averaged if there is an average, for other programs
state.safetensors                        weight.NAME, adam_m.NAME, adam_v.NAME and average.NAME of what is trained
state.json                               the position in the run, the loss scale, and the run's fingerprint
"""

import json
import logging
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

import numpy as np
from mindspore import Parameter, Tensor

from gm.config.values import Range, expect, flags_below
from gm.errors import UserError
from gm.files import (
    PathLike,
    atomic_dir,
    atomic_file,
    locked,
    make_output_dir,
    open_private,
    parse_json,
    read_text,
    reason,
    remove_dir,
    remove_leftovers,
    require_free_space,
)
from gm.training.optim import AVERAGE
from gm.weights.checkpoint import open_checkpoint
from gm.weights.parameters import WeightsWriter, set_parameter
from gm.weights.safetensors_file import array_bytes, write_safetensors
from gm.weights.tensor_source import TensorInfo

RESUME = "--train.resume"
FOLDER, PREFIX, LOCK = "checkpoints", "step_", ".lock"
STEP = re.compile(re.escape(PREFIX) + r"\d{8,}")
AUTO = "auto"
TENSORS, NUMBERS = "state.safetensors", "state.json"
FORMAT = 1  # raised when the files change their meaning
WEIGHT = "weight"
Steps = Annotated[int, Range(0, 2**53)]
NUMBER_TYPES = dict.fromkeys(("step", "updates", "skipped", "nonfinite"), Steps)
NUMBER_TYPES.update(loss_scale=dict, identity=dict)
SHOWN = 60  # characters of a value in an error line

logger = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of a run.

    Args:
        output_dir: the run's folder.
        keep: how many of the newest stay; 0 keeps all.
    """

    def __init__(self, output_dir: Path, keep: int = 0) -> None:
        self.output_dir, self.keep = output_dir, keep
        self.folder = output_dir / FOLDER

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is or will be."""
        return self.folder / f"{PREFIX}{step:08d}"

    def all(self) -> List[Path]:
        """The checkpoints, oldest first; a folder that someone renamed is left alone."""
        found = (path for path in self.folder.glob(f"{PREFIX}*") if path.is_dir())
        return sorted(path for path in found if STEP.fullmatch(path.name))

    def newest(self) -> Optional[Path]:
        """The last checkpoint, if there is one."""
        return max(self.all(), default=None)

    def find(self, resume: str) -> Optional[Path]:
        """The checkpoint that `--train.resume` means; None to start anew.

        Args:
            resume: "" starts anew; "auto" takes the newest checkpoint of this run, if there is one; else the path of a
                checkpoint, or of a run, whose newest is taken.

        Raises:
            UserError: there is no such checkpoint, or a new run would mix its checkpoints with those of another.
        """
        newest = self.newest()
        if resume == AUTO:
            return newest
        if not resume:
            if newest is None:
                return None
            raise UserError(
                f"--train.output_dir: {self.output_dir} has the checkpoints of an earlier run; {RESUME}=auto goes "
                "on with it, another folder starts anew"
            )
        path = Path(resume)
        found = path if path.name.startswith(PREFIX) else CheckpointFolder(path).newest()
        if found is None or not found.is_dir():
            raise UserError(f"{RESUME}: {path} is neither a checkpoint's folder ({PREFIX}…) nor a run that has one")
        if newest is not None and newest.resolve() != found.resolve():
            raise UserError(
                f"{RESUME}: {path} is not the newest checkpoint in {self.output_dir}, which is {newest.name}; remove "
                "the later ones or name another --train.output_dir"
            )
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of the folder, and removes what a killed one left half-written.

        Raises:
            UserError: another run is writing there, or the folder cannot be written.
        """
        make_output_dir(self.output_dir, "--train.output_dir")
        try:
            file = open_private(self.output_dir / LOCK)
        except OSError as error:
            raise UserError(f"--train.output_dir: cannot write {self.output_dir / LOCK}: {reason(error)}") from error
        with file:
            if not locked(file.fileno()):
                raise UserError(f"--train.output_dir: another run is writing to {self.output_dir}")
            if self.folder.is_symlink():
                raise UserError(f"--train.output_dir: {self.folder} is a symbolic link; name a folder without one")
            remove_leftovers(self.folder)
            for path in self.folder.glob(f".{PREFIX}*"):
                shutil.rmtree(path, ignore_errors=True)
            yield

    def prune(self) -> None:
        """Removes all but the newest `keep`."""
        for path in self.all()[: -self.keep] if self.keep else []:
            try:
                remove_dir(path)  # never half a checkpoint under a whole one's name
            except OSError as error:
                logger.warning("cannot remove the old checkpoint %s: %s", path, error)


    def give_up_oldest(self, problem: str) -> bool:
        """Removes the oldest checkpoint of several to make room for the last one; False where there is at most one.

        Args:
            problem: why, for the log.
        """
        oldest = self.all()[:-1][:1]
        for path in oldest:
            try:
                remove_dir(path)
            except OSError as error:
                logger.warning("cannot remove the old checkpoint %s: %s", path, error)
                return False
            logger.warning("gave up the old checkpoint %s for the last one: %s", path, problem)
        return bool(oldest)


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
    info = {name: TensorInfo("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    room = checkpoint_bytes({name: entry.shape for name, entry in info.items()}, writer)
    require_free_space(path.parent, room, "the checkpoint")
    kind = AVERAGE if any(name.startswith(f"{AVERAGE}.") for name in tensors) else WEIGHT
    values = {name: tensors[f"{kind}.{name}"].asnumpy for name in _weights(info)}
    with atomic_dir(path) as folder:
        writer.write(folder, values, {"step": str(numbers["step"]), "weights": f"{kind}s of the training run"})
        write_safetensors(folder / TENSORS, info, lambda name: array_bytes(tensors[name].asnumpy()), {})
        with atomic_file(folder / NUMBERS) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **numbers}, indent=1))


def checkpoint_bytes(shapes: Mapping[str, Tuple[int, ...]], writer: WeightsWriter) -> int:
    """Room that a checkpoint takes, for the shapes of what :func:`write_checkpoint` is given, up to its headers."""
    state_bytes = sum(TensorInfo("F32", shape).num_bytes for shape in shapes.values())
    return state_bytes + writer.num_bytes({name: shapes[f"{WEIGHT}.{name}"] for name in _weights(shapes)})


def _weights(names: Iterable[str]) -> List[str]:
    """What is trained, by its name in the network."""
    return [name[len(WEIGHT) + 1 :] for name in names if name.startswith(f"{WEIGHT}.")]


def read_numbers(path: Path) -> Dict[str, Any]:
    """A checkpoint's `state.json`.

    Raises:
        UserError: the folder is no checkpoint, or one that another version wrote.
    """
    try:
        numbers = parse_json(read_text(path / NUMBERS))
        if numbers["format"] == FORMAT:
            with flags_below(f"{RESUME}: {path / NUMBERS}: "):
                for name, annotation in NUMBER_TYPES.items():
                    expect(name, numbers[name], annotation)
            return numbers
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{RESUME}: {path} is no checkpoint that can be resumed: {NUMBERS} cannot be read") from error
    raise UserError(f"{RESUME}: {path} was written by another version of this program (format {numbers['format']})")


def check_fingerprint(path: Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
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


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
