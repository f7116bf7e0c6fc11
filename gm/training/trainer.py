"""The training loop: batches to updates, with checkpoints, validation and an end that loses nothing."""

import logging
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Callable, ContextManager, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence

import numpy as np
from mindspore import Parameter, Tensor

from gm.backend.memory import peak_memory_gb
from gm.config.values import flags_below
from gm.errors import UserError
from gm.files import kept_room
from gm.model import DiffusionEngine
from gm.training import checkpoints as state
from gm.training.callbacks import Callback
from gm.training.objective import SampleRandom, mean_losses
from gm.training.optim import LearningRate
from gm.training.train_step import Inputs, StepResult, TrainStep
from gm.weights.parameters import WeightsWriter

HEADER_BYTES = 1 << 22  # of a checkpoint's files, at most
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Batch = Mapping[str, np.ndarray]  # what the data set gives: column -> values with a batch axis
Randoms = Sequence[SampleRandom]  # of the b clips of a batch
Prepare = Callable[[Batch, Randoms], Inputs]  # from what the data set gives to what the loss takes

logger = logging.getLogger(__name__)


class Batches(NamedTuple):
    """This process's share of the training data."""

    open: Callable[[int], Iterator[Batch]]  # all batches from a number on, over the epochs
    per_epoch: int
    size: int  # samples in each


class Plan(NamedTuple):
    """When what happens, in steps."""

    total_steps: int
    checkpoint_every: int
    validate_every: int  # 0: never
    max_nonfinite: int  # steps in a row without a finite loss and gradient, after which the run stops


class StopSignal:
    """SIGTERM and Ctrl-C as a wish to stop, granted when the run's state can be saved.

    Inside the block the first signal only sets `received`; a second one has its usual effect.

    Attributes:
        received: the signal's name, or "".
    """

    def __init__(self) -> None:
        self.received = ""
        self._process = os.getpid()
        self._before: Dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.__exit__()
        if os.getpid() != self._process:  # a worker that was forked from the run's process
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number).name
        logger.warning("%s: saving a checkpoint after this step, then stopping; again stops at once", self.received)


class Trainer:
    """Trains until the last step or a signal.

    Attributes:
        step: optimizer steps done, of `total_steps`.
        output_dir: the run's folder.
        engine: its `network` stage holds the network that is trained; the other stages load on use and are released.

    Args:
        train_step: with the optimizer, the average and the loss scale.
        parameters: what is trained, by its name in the network.
        engine: see above.
        prepare: from batches to inputs.
        seed: of what it draws.
        batches: the data.
        schedule: the learning rate of every step.
        plan: when what happens.
        checkpoints: where.
        writer: of the weights for users.
        fingerprint: settings that have to be the same when the run is resumed: flag -> value.
        callbacks: of rank 0; elsewhere none.
    """

    def __init__(
        self,
        train_step: TrainStep,
        parameters: Mapping[str, Parameter],
        engine: DiffusionEngine,
        prepare: Prepare,
        seed: int,
        batches: Batches,
        schedule: LearningRate,
        plan: Plan,
        checkpoints: state.CheckpointFolder,
        writer: WeightsWriter,
        fingerprint: Mapping[str, Any],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.train_step, self.parameters, self.engine = train_step, dict(parameters), engine
        self.prepare, self.seed, self.batches, self.schedule, self.plan = prepare, seed, batches, schedule, plan
        self.checkpoints, self.writer, self.fingerprint = checkpoints, writer, dict(fingerprint)
        self.callbacks = tuple(callbacks)
        self.communicator = train_step.communicator
        self.total_steps, self.output_dir = plan.total_steps, checkpoints.output_dir
        self.step = self.skipped = self.nonfinite = 0
        self._saved_step = -1

    def averaged(self) -> ContextManager[None]:
        """Inside the block the network has the averaged weights, or its own where there is no average."""
        average = self.train_step.average
        return nullcontext() if average is None else average.swapped()

    def run(self) -> None:
        """Trains from the present step on; a checkpoint is there at the end, whatever ends it in good order.

        Raises:
            UserError: no room for that checkpoint; the loss or its gradients stayed without finite values; the data
                cannot be read; the last checkpoint cannot be written.
        """
        with self._room() as give_back:
            for callback in self.callbacks:
                callback.on_start(self)
            try:
                with StopSignal() as stop:
                    if self.step == 0:
                        self._validate()
                    self._loop(stop)
                give_back()
                if self.step != self._saved_step:
                    self.save(last=True)
            finally:
                for callback in self.callbacks:
                    callback.on_end(self.step)

    def _room(self) -> ContextManager[Callable[[], None]]:
        """Keeps room for the last checkpoint from the start on: a disk that fills meanwhile does not lose the run."""
        if self.communicator.rank:
            return nullcontext(lambda: None)
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors({}).items()}
        room = state.checkpoint_bytes({**shapes, **self.train_step.optimizer.shapes()}, self.writer)
        return kept_room(self.output_dir, room + HEADER_BYTES, "the run's last checkpoint")

    def _loop(self, stop: StopSignal) -> None:
        inputs = self._inputs()
        started = time.perf_counter()
        while self.step < self.total_steps and not self._stop_wanted(stop):
            lr = self.schedule(self.step)
            result = self.train_step([next(inputs) for _ in range(self.train_step.batches)], lr)
            self.step += 1
            metrics = self._metrics(result, lr, time.perf_counter() - started)
            for callback in self.callbacks:
                callback.on_step(self.step, metrics)
            self._count_nonfinite(result)
            self._save_and_validate()
            started = time.perf_counter()

    def _save_and_validate(self) -> None:
        if self.step % self.plan.checkpoint_every == 0 and self.step < self.total_steps:
            try:
                self.save()
            except UserError as error:
                logger.error("no checkpoint at step %d: %s; training goes on", self.step, error)
        self._validate()

    def _validate(self) -> None:
        if self.plan.validate_every and self.step % self.plan.validate_every == 0:
            try:
                for callback in self.callbacks:
                    callback.on_validation(self.step, self)
            except Exception:  # an error in what only watches costs no step; of several processes none can save alone
                if self.communicator.world_size == 1 and self.step not in (0, self._saved_step):
                    self.save()
                raise

    def report(self, values: Mapping[str, float]) -> None:
        """Hands a validation's figures to all that watch."""
        for callback in self.callbacks:
            callback.on_report(self.step, values)

    def _inputs(self) -> Iterator[Inputs]:
        """What the network sees, from the present step on, without end."""
        number = self.step * self.train_step.batches
        rank, world_size = self.communicator.rank, self.communicator.world_size
        for batch in self.batches.open(number):
            epoch, in_epoch = divmod(number, self.batches.per_epoch)
            place = (in_epoch * world_size + rank) * self.batches.size
            count = len(next(iter(batch.values())))
            yield self.prepare(batch, [SampleRandom(self.seed, epoch, place + index) for index in range(count)])
            number += 1

    def _stop_wanted(self, stop: StopSignal) -> bool:
        """Whether any process was told to stop; all learn of it at the same step."""
        return bool(self.communicator.sum(np.array([float(bool(stop.received))]))[0])

    def _metrics(self, result: StepResult, lr: float, seconds: float) -> Dict[str, float]:
        self.skipped += not result.updated
        samples = self.train_step.batches * self.batches.size * self.communicator.world_size
        return {
            **mean_losses(result.loss_sums),
            "lr": lr,
            "grad_norm": result.grad_norm,
            "loss_scale": self.train_step.loss_scale.value,
            "skipped_updates": float(self.skipped),
            "epoch": self.step * self.train_step.batches / self.batches.per_epoch,
            "step_seconds": seconds,
            "samples_per_second": samples / seconds,
            "memory_gb": peak_memory_gb(),
        }

    def _count_nonfinite(self, result: StepResult) -> None:
        if result.updated:
            self.nonfinite = 0
        elif not result.overflow:
            self.nonfinite += 1
            logger.warning("step %d: the loss or its gradient is not finite; the update is skipped", self.step)
        if self.nonfinite >= self.plan.max_nonfinite:
            newest = self.checkpoints.newest()
            raise UserError(
                f"stopped at step {self.step}: the loss or its gradient was not finite {self.nonfinite} times in a row "
                f"(--train.max_nonfinite); the last good checkpoint is {newest or 'not there yet'}; lower "
                "--train.scheduler.lr or --train.settings.clip_norm"
            )

    def save(self, last: bool = False) -> None:
        """Writes a checkpoint of the present step; every process has to call it, rank 0 writes.

        Args:
            last: the run ends with it: where there is no room for it, older checkpoints make room, the oldest first.

        Raises:
            UserError: no room, or the folder cannot be written.
        """
        tensors = self._tensors(self.train_step.optimizer.gathered())
        if self.communicator.rank == 0:
            path = self.checkpoints.path(self.step)
            numbers = {
                "step": self.step,
                "updates": self.train_step.updates,
                "skipped": self.skipped,
                "nonfinite": self.nonfinite,
                "loss_scale": self.train_step.loss_scale.state(),
                "identity": self.fingerprint,
            }
            while True:
                try:
                    state.write_checkpoint(path, tensors, numbers, self.writer)
                    break
                except UserError as error:
                    if not (last and self.checkpoints.give_up_oldest(str(error))):
                        raise
            self.checkpoints.prune()
            logger.info("checkpoint %s", path)
        self._saved_step = self.step

    def restore(self, path: Path) -> None:
        """Goes on where a checkpoint was written.

        Raises:
            UserError: it is of another run, or cannot be read.
        """
        numbers = state.read_numbers(path)
        state.check_fingerprint(path, numbers["identity"], self.fingerprint)
        optimizer = self.train_step.optimizer
        state.read_tensors(path, self._tensors(optimizer.state()), optimizer.shapes())
        self.step, self.skipped, self.nonfinite = (numbers[name] for name in ("step", "skipped", "nonfinite"))
        self.train_step.updates = numbers["updates"]
        with flags_below(f"{state.RESUME}: {path}: "):
            self.train_step.loss_scale.restore(numbers["loss_scale"])
        self._saved_step = self.step if path == self.checkpoints.path(self.step) else -1
        logger.info("resumed from %s", path)

    def _tensors(self, moments: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        average = self.train_step.average
        weights = {f"{state.WEIGHT}.{name}": parameter for name, parameter in self.parameters.items()}
        return {**weights, **moments, **({} if average is None else average.state())}
