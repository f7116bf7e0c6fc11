"""Callbacks that every run has: a progress line, TensorBoard's curves, the configuration beside the checkpoints.

What a callback may not do is end the run: see :func:`keep_training`.
"""

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import yaml
from tqdm import tqdm

from gm.device.memory_errors import is_out_of_memory
from gm.errors import UserError
from gm.files import atomic_file, read_text, reason
from gm.training.callbacks_base import Callback, TrainerView
from gm.training.metrics_log import MetricsLog

CONFIG_NAME = "config"

logger = logging.getLogger(__name__)


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
    except UserError as error:
        logger.warning("%s failed: %s; training goes on", what, error)
    except OSError as error:
        logger.warning("%s failed: %s; training goes on", what, reason(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("%s failed: out of memory; training goes on", what)


class ProgressLine(Callback):
    """A line with the step, the loss and the time left; silent where standard error is no terminal.

    Args:
        disable: hides it; None does where there is no terminal.
    """

    def __init__(self, disable: Optional[bool] = None) -> None:
        self._disable = disable
        self._bar: Optional[tqdm] = None

    def on_start(self, trainer: TrainerView) -> None:
        """Shows the line, from the step that the run goes on at."""
        self._bar = tqdm(
            total=trainer.total_steps,
            initial=trainer.step,
            desc="training",
            unit="step",
            disable=self._disable,
            dynamic_ncols=True,
        )

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the line on; updates that were skipped are shown once there are any."""
        shown = {"loss": f"{metrics['loss']:.4f}", "lr": f"{metrics['lr']:.2e}"}
        if metrics.get("skipped_updates"):
            shown["skipped"] = f"{metrics['skipped_updates']:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def on_end(self, step: int) -> None:
        """Leaves the line as it is."""
        if self._bar is not None:
            self._bar.close()


class TensorBoardScalars(Callback):
    """Writes all metrics of every n-th step as curves.

    Args:
        log: where to.
        every: n.
    """

    def __init__(self, log: MetricsLog, every: int = 1) -> None:
        self._log, self._every = log, every

    def on_start(self, trainer: TrainerView) -> None:
        """Curves of a run that was killed go on where the resumed one does."""
        self._log.start(trainer.step)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a point of each curve."""
        if step % self._every == 0:
            self._log.scalars(step, metrics)

    def on_end(self, step: int) -> None:
        """Closes the file."""
        self._log.close()


class ConfigFile(Callback):
    """Saves the resolved configuration as `config.yaml` in the run's folder.

    A resumed run with another configuration keeps the former one as `config_until_step_N.yaml`.

    Args:
        config: plain dictionaries, lists, text and numbers.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)

    def on_start(self, trainer: TrainerView) -> None:
        """Writes the file, whole or not at all."""
        path = Path(trainer.output_dir) / f"{CONFIG_NAME}.yaml"
        with keep_training(f"saving {path}"):
            if path.exists() and read_text(path) != self._text:
                path.replace(path.with_name(f"{CONFIG_NAME}_until_step_{trainer.step}.yaml"))
            with atomic_file(path) as temporary:
                temporary.write_text(self._text, encoding="utf-8")
