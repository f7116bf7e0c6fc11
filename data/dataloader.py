"""Batches in one order for any number of devices and workers, resumable at any batch, through MindSpore's dataset."""

import gc
import logging
import os
import signal
from contextlib import contextmanager
from functools import lru_cache
from typing import Dict, Iterator, Sequence, Tuple

import cv2
import mindspore.dataset as ds
import numpy as np

from gm.errors import UserError

logger = logging.getLogger(__name__)

ORDER_STREAM = 0  # keeps these random numbers apart from others drawn from the same seed
PREFETCHED_ROWS = 2  # per queue of MindSpore's pipeline; its default of 16 would hold gigabytes of video
FLAG = "--train.dataloader."

# A worker frees nothing that its parent left to the collector: FFmpeg would wait for threads that are not forked along.
os.register_at_fork(after_in_child=gc.freeze)


class Schedule:
    """Which samples form batch `batch` of epoch `epoch` on this rank.

    An epoch is one permutation of all samples, drawn from (seed, epoch). Global batches are consecutive runs of
    batch_size x world_size of it, and rank r takes the r-th part of each. So several ranks together see exactly the
    batches that one rank sees with their total batch size.
    """

    def __init__(
        self, num_samples: int, batch_size: int, shuffle: bool, rank: int, world_size: int, seed: int,
        drop_remainder: bool,
    ):  # fmt: skip
        """See :func:`make_dataloader`."""
        self._num_samples, self._shuffle, self._seed = num_samples, shuffle, seed
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        num_batches, remainder = divmod(num_samples, batch_size * world_size)
        self.batches_per_epoch = num_batches + (remainder > 0 and not drop_remainder)
        self.rows_per_epoch = num_batches * batch_size + (0 if drop_remainder else remainder)
        self._order = lru_cache(maxsize=1)(self._epoch_order)

    def row(self, number: int) -> Tuple[int, int]:
        """(epoch, sample index) of this rank's row `number`, counted from the start of epoch 0."""
        epoch, row = divmod(number, self.rows_per_epoch)
        batch, place = divmod(row, self._batch_size)
        return epoch, int(self._order(epoch)[(batch * self._world_size + self._rank) * self._batch_size + place])

    def first_row(self, epoch: int, batch: int) -> int:
        """The number of the first row of a batch."""
        return epoch * self.rows_per_epoch + batch * self._batch_size

    def batch_rows(self, batch: int) -> int:
        """Number of rows in batch `batch` of an epoch."""
        return min(self._batch_size, self.rows_per_epoch - batch * self._batch_size)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._num_samples)
        sequence = np.random.SeedSequence(self._seed, spawn_key=(ORDER_STREAM, epoch))
        return np.random.default_rng(sequence).permutation(self._num_samples)


class DataLoader:
    """Iterates over batches, each a dictionary of NumPy arrays; made by :func:`make_dataloader`.

    Attributes:
        batches_per_epoch: number of batches of a whole epoch.
    """

    def __init__(self, dataset, schedule: Schedule, num_workers: int, epoch: int, start_batch: int, epochs: int):
        """See :func:`make_dataloader`."""
        self._dataset, self._schedule, self._num_workers = dataset, schedule, num_workers
        self.batches_per_epoch = schedule.batches_per_epoch
        self._first = epoch * self.batches_per_epoch + start_batch
        self._end = (epoch + epochs) * self.batches_per_epoch

    def __len__(self) -> int:
        """Number of batches that a loop over this gives."""
        return self._end - self._first

    def __iter__(self) -> Iterator[Dict[str, np.ndarray]]:
        """Yields the dataset's collated batches.

        Raises:
            UserError: what the dataset raised, in whichever process.
        """
        if not len(self):
            return
        rows = self._rows()
        for number in range(self._first, self._end):
            batch = number % self.batches_per_epoch
            yield self._dataset.collate([_checked(next(rows)) for _ in range(self._schedule.batch_rows(batch))])

    def _rows(self) -> Iterator[Sequence[np.ndarray]]:
        first = self._schedule.first_row(*divmod(self._first, self.batches_per_epoch))
        end = self._schedule.first_row(*divmod(self._end, self.batches_per_epoch))
        pipeline = ds.GeneratorDataset(
            _Rows(self._dataset, self._schedule, first, end),
            column_names=[*self._dataset.columns, "error"],
            shuffle=False,
            num_parallel_workers=_parallel_workers(self._num_workers),
        )
        with _short_queues():
            return pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True)


def make_dataloader(
    dataset,
    batch_size: int,
    shuffle: bool = True,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 42,
    epoch: int = 0,
    start_batch: int = 0,
    drop_remainder: bool = True,
    epochs: int = 1,
) -> DataLoader:
    """Batches of a dataset from any point of any epoch on, exactly as an undisturbed run would see them.

    Args:
        dataset: has `columns`, `__len__`, `read(epoch, index)` that gives one array per column (in worker processes),
            and `collate(rows)` that makes a batch of them (in this process); see data/video_dataset.py.
        batch_size: samples per batch and rank.
        shuffle: a new order each epoch; otherwise the dataset's.
        num_workers: processes that read samples, at most one per core; 0 or 1 reads in a thread of this process.
        rank: this process's number, 0..world_size - 1.
        world_size: number of processes that train together.
        seed: of the order; 0 or more, the same on every rank.
        epoch: the first epoch to give.
        start_batch: the first batch of it to give.
        drop_remainder: leave out an epoch's last, smaller batch.
        epochs: how many epochs to give, the first, maybe partial one included: one pipeline serves all of them.

    Raises:
        UserError: no batch is full, or a smaller last batch is asked for with several ranks.
    """
    if world_size > 1 and not drop_remainder:
        raise UserError(f"{FLAG}drop_remainder=False: ranks would get unequal batches; leave it True with several")
    if batch_size < 1:
        raise UserError(f"{FLAG}batch_size is {batch_size}; it is 1 or more")
    schedule = Schedule(len(dataset), batch_size, shuffle, rank, world_size, seed, drop_remainder)
    if schedule.batches_per_epoch == 0:
        raise UserError(
            f"{FLAG}batch_size: {len(dataset)} usable videos do not fill one batch of {batch_size} on {world_size} "
            f"device(s); lower it, add videos, or set {FLAG}drop_remainder=False"
        )
    if not 0 <= start_batch <= schedule.batches_per_epoch:
        raise ValueError(f"start_batch {start_batch} is not in 0..{schedule.batches_per_epoch}")
    return DataLoader(dataset, schedule, num_workers, epoch, start_batch, epochs)


class _Rows:
    """Rows first..end - 1 of a schedule as a random-accessible source; the last column is the error's text."""

    def __init__(self, dataset, schedule: Schedule, first: int, end: int):
        self._dataset, self._schedule, self._first, self._end = dataset, schedule, first, end
        self._pid = os.getpid()

    def __len__(self) -> int:
        return self._end - self._first

    def __getitem__(self, number: int) -> Tuple[np.ndarray, ...]:
        if os.getpid() != self._pid:
            _settle_worker()
        try:
            return (*self._dataset.read(*self._schedule.row(self._first + int(number))), np.array(""))
        except UserError as error:
            return (*[np.zeros(1, np.uint8)] * len(self._dataset.columns), np.array(str(error)))


def _parallel_workers(num_workers: int) -> int:
    """What MindSpore accepts: 1, a thread of this process, up to the number of cores, processes."""
    cores = os.cpu_count() or 1
    if num_workers > cores:
        logger.warning("%snum_workers is %d; %d are used, one for each core", FLAG, num_workers, cores)
    return max(1, min(num_workers, cores))


def _settle_worker() -> None:
    """Makes a forked process fit for the work; the parent ends it through MindSpore's queue."""
    cv2.setNumThreads(0)  # OpenCV's threads are not forked along, and it would wait for them for ever
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole group, it is for the parent to save and stop


def _checked(row: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    error = str(row[-1])
    if error:
        raise UserError(error)
    return row[:-1]


@contextmanager
def _short_queues() -> Iterator[None]:
    previous = ds.config.get_prefetch_size()
    ds.config.set_prefetch_size(PREFETCHED_ROWS)
    try:
        yield
    finally:
        ds.config.set_prefetch_size(previous)
