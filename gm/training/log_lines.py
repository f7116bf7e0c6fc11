"""Lines about a run for its log file, and its figures as a file that programs read."""

import json
import logging
import math
from pathlib import Path
from typing import Mapping, Optional, TextIO

from gm.files import atomic_file, open_private, read_text
from gm.training.callbacks_base import Callback, TrainerView

METRICS_NAME = "metrics.jsonl"

logger = logging.getLogger(__name__)


class LogLines(Callback):
    """Logs every n-th step in one line.

    Args:
        every: n.
    """

    def __init__(self, every: int) -> None:
        self._every, self._total = every, 0

    def on_start(self, trainer: TrainerView) -> None:
        """Says where the run stands."""
        self._total = trainer.total_steps
        logger.info("training from step %d to %d in %s", trainer.step, trainer.total_steps, trainer.output_dir)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line."""
        if step % self._every == 0:
            logger.info(
                "step %d of %d: loss %.4f, gradient %.3f, lr %.2e, %.3g samples/s, %.2f GB",
                step, self._total, metrics["loss"], metrics["grad_norm"], metrics["lr"],
                metrics["samples_per_second"], metrics["memory_gb"],
            )  # fmt: skip

    def on_end(self, step: int) -> None:
        """Says where it ended."""
        logger.info("ended at step %d of %d", step, self._total)


class MetricsFile(Callback):
    """Appends every step's figures to `metrics.jsonl` in the run's folder: a JSON object a line, with its `step`.

    A resumed run first removes the lines of steps after its checkpoint, which come again.
    """

    def __init__(self) -> None:
        self._file: Optional[TextIO] = None

    def on_start(self, trainer: TrainerView) -> None:
        """Opens the file."""
        path = Path(trainer.output_dir) / METRICS_NAME
        kept = [line for line in _lines(path) if _step(line) <= trainer.step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._file = open_private(path, encoding="utf-8")

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line; a full disk loses it, not the run."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            logger.warning("cannot write %s: %s; training goes on", METRICS_NAME, error)

    def on_end(self, step: int) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _lines(path: Path) -> list:
    return read_text(path).splitlines(keepends=True) if path.exists() else []


def _step(line: str) -> float:
    """The step of a line; infinity for one that a killed run left unfinished."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
