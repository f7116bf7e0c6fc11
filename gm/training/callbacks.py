"""Callbacks, which watch a run but may not end it (:func:`keep_training`), and those that every run has."""

import json
import logging
import math
import os
import secrets
import time
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Deque, Dict, Iterator, Mapping, Optional, TextIO, Tuple

import mindspore as ms
import numpy as np
import yaml
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from gm.backend.memory import is_out_of_memory
from gm.backend.operators import GRAPH_MODE
from gm.errors import UserError
from gm.files import PathLike, atomic_file, open_private, own_folder, parse_json, read_lines, read_text, reason

if TYPE_CHECKING:
    from gm.training.trainer import Trainer

CONFIG_NAME, METRICS_NAME = "config", "metrics.jsonl"
VALIDATION_NAME = "validation.jsonl"
LINE = "step {step} of {total}: loss {loss:.4f}, mean of the last {count} {mean:.4f}, gradient {grad_norm:.3f}, "
LINE += "lr {lr:.2e}, {seconds:.2f} s a step, {left} left, {memory_gb:.2f} GB"
WANDB_ID = "wandb_id.txt"
MEAN_STEPS = 100  # over which a log line's mean loss and seconds a step are taken
RGB_CHANNELS = 3
RETRY_SECONDS = 60.0  # after a failure to write TensorBoard's files

logger = logging.getLogger(__name__)


class Callback:
    """Watches a run; does nothing by default. Called in the process of rank 0 only.

    It may use the trainer's `step`, `total_steps`, `output_dir`, `engine` and `averaged()`.
    """

    def on_start(self, trainer: "Trainer") -> None:
        """Before the first step; `trainer.step` is where a resumed run goes on."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each optimizer step.

        Args:
            step: optimizer steps done, from 1.
            metrics: `loss`; `loss_sigma/LOW-HIGH` for each σ bucket that had a clip; `lr`; `grad_norm` (before
                clipping); `loss_scale`; `skipped_updates` (so far); `epoch` (a fraction); `step_seconds`;
                `samples_per_second`; `memory_gb` (this process's peak).
        """

    def on_validation(self, step: int, trainer: "Trainer") -> None:
        """Before the first step and every `validate_every` steps; samples with `trainer.engine` inside
        `with trainer.averaged():`, and hands figures to `trainer.report`."""

    def on_report(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a validation."""

    def on_end(self, step: int) -> None:
        """After the last step, or when the run stops early."""


@contextmanager
def keep_training(what: str) -> Iterator[None]:
    """Lets a run go on when something beside it fails for want of room, memory or permission.

    Errors of the operating system, of writing files (UserError) and of memory that ran out become a warning. Any other
    exception is an error in the program and passes.

    Args:
        what: that fails, for the warning.
    """
    try:
        yield
    except (OSError, UserError) as error:
        logger.warning("%s failed: %s; training goes on", what, reason(error) if isinstance(error, OSError) else error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("%s failed: out of memory; training goes on", what)


class ProgressLine(Callback):
    """A line with step, loss, time left and, once there are any, skipped updates; silent without a terminal.

    Args:
        disable: hides it; None does where there is no terminal.
    """

    def __init__(self, disable: Optional[bool] = None) -> None:
        self._disable = disable
        self._bar: Optional[tqdm] = None

    def on_start(self, trainer: "Trainer") -> None:
        position = {"initial": trainer.step, "total": trainer.total_steps}
        self._bar = tqdm(desc="training", unit="step", disable=self._disable, dynamic_ncols=True, **position)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = {"loss": f"{metrics['loss']:.4f}", "lr": f"{metrics['lr']:.2e}"}
        if metrics.get("skipped_updates"):
            shown["skipped"] = f"{metrics['skipped_updates']:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def on_end(self, step: int) -> None:
        if self._bar is not None:
            self._bar.close()


class LogLines(Callback):
    """Logs every n-th step, and every validation, in one line; and that the first step takes long, where it does.

    Args:
        every: n.
    """

    def __init__(self, every: int) -> None:
        self._every, self._total, self._compiles = every, 0, False
        self._recent: Deque[Tuple[float, float]] = deque(maxlen=MEAN_STEPS)  # loss, seconds

    def on_start(self, trainer: "Trainer") -> None:
        self._total = trainer.total_steps
        self._compiles = ms.get_context("mode") == GRAPH_MODE and trainer.step < trainer.total_steps
        logger.info("training from step %d to %d in %s", trainer.step, trainer.total_steps, trainer.output_dir)
        if self._compiles:
            logger.info("compiling with the first step, about a minute for a small network and several for a large one")

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._compiles:
            logger.info("compiled: the first step took %.0f s", metrics["step_seconds"])
            self._compiles = False
            self._recent.append((metrics["loss"], math.nan))
        else:
            self._recent.append((metrics["loss"], metrics["step_seconds"]))
        if step % self._every == 0:
            losses, seconds = np.array(self._recent).T
            seconds = seconds[np.isfinite(seconds)]
            pace = float(np.median(seconds)) if len(seconds) else metrics["step_seconds"]
            mean = {"count": len(losses), "mean": float(np.nanmean(losses)), "seconds": pace}
            left = tqdm.format_interval(pace * (self._total - step))
            logger.info("%s", LINE.format(step=step, total=self._total, left=left, **mean, **metrics))

    def on_report(self, step: int, values: Mapping[str, float]) -> None:
        told = ", ".join(f"{name.partition('/')[2].replace('_', ' ')} {value:.4g}" for name, value in values.items())
        logger.info("validation at step %d: %s", step, told)

    def on_end(self, step: int) -> None:
        logger.info("ended at step %d of %d", step, self._total)


class MetricsFile(Callback):
    """Appends every step's figures to `metrics.jsonl` in the run's folder, and every validation's to
    `validation.jsonl`: a JSON object a line, with its `step`.

    A resumed run first removes the lines of steps after its checkpoint, which come again. A full disk loses lines, not
    the run.
    """

    def __init__(self) -> None:
        self._folder = Path()
        self._files: Dict[str, TextIO] = {}

    def on_start(self, trainer: "Trainer") -> None:
        self._folder = Path(trainer.output_dir)
        for path in (self._folder / METRICS_NAME, self._folder / VALIDATION_NAME):
            if os.path.lexists(path):  # a link that leads nowhere is told now, not at each step
                lines = read_lines(path)
                with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                    file.writelines(line for line in lines if _step(line) <= trainer.step)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append(METRICS_NAME, step, metrics)

    def on_report(self, step: int, values: Mapping[str, float]) -> None:
        self._append(VALIDATION_NAME, step, values)

    def on_end(self, step: int) -> None:
        for file in self._files.values():
            file.close()

    def _append(self, name: str, step: int, values: Mapping[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with keep_training(f"writing {name}"):
            if name not in self._files:
                self._files[name] = open_private(self._folder / name, encoding="utf-8")
            self._files[name].write(json.dumps({"step": step, **finite}) + "\n")
            self._files[name].flush()


def _step(line: str) -> float:
    """The step of a line; infinity for one that a killed run left unfinished."""
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoardLog(Callback):
    """Writes all metrics as curves into TensorBoard event files; `tensorboard --logdir=FOLDER` shows them.

    tensorboardX's own writer hands events to a thread that a full disk kills; then its queue fills, and the run hangs.
    Here every event is written and flushed at once, so that a killed run keeps its curves. A failure to write is logged
    once, events are dropped for a minute, then a new file is tried: with a full disk training goes on, and the curves
    do when there is room again.

    Args:
        folder: where the files are; made with the first event.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = os.fspath(folder)
        self._writer: Optional[EventsWriter] = None
        self._files, self._failed, self._retry_at = 0, False, 0.0

    def on_start(self, trainer: "Trainer") -> None:
        """Tells TensorBoard to forget what a run that was killed wrote about later steps."""
        self._write(Event(step=trainer.step + 1, session_log=SessionLog(status=SessionLog.START)))

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        points = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def on_report(self, step: int, values: Mapping[str, float]) -> None:
        self.on_step(step, values)

    def animation(self, step: int, name: str, gif: bytes, height: int, width: int) -> None:
        """An animated image, shown under Images; `gif` is the file's content."""
        image = Summary.Image(height=height, width=width, colorspace=RGB_CHANNELS, encoded_image_string=gif)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def on_end(self, step: int) -> None:
        """Closes the file; a later event opens another one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):  # what is left in its buffer could not be written before either
                writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        if event.wall_time < self._retry_at:
            return
        try:
            if self._writer is None:
                own_folder(self.folder)
                self._files += 1
                self._writer = EventsWriter(os.path.join(self.folder, "events"), f".{os.getpid()}.{self._files}")
            self._writer.write_event(event)
            self._writer.flush()
            self._failed = False
        except OSError as error:
            if not self._failed:
                problem = reason(error)
                logger.warning("cannot write TensorBoard's files in %s: %s; training goes on", self.folder, problem)
            self._failed, self._retry_at = True, event.wall_time + RETRY_SECONDS
            self.on_end(event.step)


class WandbLog(Callback):
    """Sends all metrics, and videos, to Weights & Biases, or keeps them on the disk (WANDB_MODE=offline). A resumed run
    goes on under the same name.

    Args:
        project: where to.
        config: plain dictionaries, lists, text and numbers.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("--train.wandb: wandb is not installed; pip install wandb") from error
        self._wandb, self._options = wandb, {"project": project, "config": dict(config), "resume": "allow"}
        self._run: Any = None

    def on_start(self, trainer: "Trainer") -> None:
        name = Path(trainer.output_dir) / WANDB_ID
        if not name.exists():
            with atomic_file(name) as temporary:
                temporary.write_text(secrets.token_hex(4), encoding="utf-8")
        try:
            self._run = self._wandb.init(id=read_text(name).strip(), dir=trainer.output_dir, **self._options)
        except self._wandb.Error as error:
            problem = " ".join(str(error).split())
            raise UserError(f"--train.wandb: {problem}; WANDB_MODE=offline needs no network and no login") from error

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def on_report(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def video(self, step: int, name: str, path: Path) -> None:
        """A video's file, mp4."""
        self._run.log({name: self._wandb.Video(str(path), format="mp4")}, step=step)

    def on_end(self, step: int) -> None:
        if self._run is not None:
            self._run.finish()


class ConfigFile(Callback):
    """Saves the resolved configuration as `config.yaml` in the run's folder.

    A resumed run with another configuration keeps the former one as `config_until_step_N.yaml`.

    Args:
        config: plain dictionaries, lists, text and numbers.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)

    def on_start(self, trainer: "Trainer") -> None:
        path = Path(trainer.output_dir) / f"{CONFIG_NAME}.yaml"
        with keep_training(f"saving {path}"):
            if path.exists() and read_text(path) != self._text:
                path.replace(path.with_name(f"{CONFIG_NAME}_until_step_{trainer.step}.yaml"))
            with atomic_file(path) as temporary:
                temporary.write_text(self._text, encoding="utf-8")
