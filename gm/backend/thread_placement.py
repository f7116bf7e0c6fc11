"""Which core each of the process's threads runs on, while networks run operator by operator on a few cores.

MindSpore's threads and OpenBLAS's wait in loops for what to do next. To the operating system a core with such a thread
on it is as busy as any, so on a small machine a thread that is woken for half of a product or of a loop is put on the
core of the one that woke it, and the halves run one after the other. With the thread that calls, and MindSpore's that
runs when it waits, on one core, and those that help on the others, a UNet step of 14 frames of 128x128 takes a tenth
less on two cores.
"""

import os
import threading
from contextlib import contextmanager
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Dict, Iterator, Set

import numpy as np

from gm.backend.kernels import threads

MOST_CORES = 4  # with more, some are free whatever waits on others
THREADS = Path("/proc/self/task")
WITH_CALLER = "ActorThread"  # MindSpore's, which starts operators


@contextmanager
def threads_placed() -> Iterator[None]:
    """Inside, threads of this process stay on cores of their own; afterwards they may run where they could before.

    For a process that does nothing else meanwhile: a thread that is started inside begins on its starter's core. Does
    nothing where there is one core, or more than :data:`MOST_CORES`, or where Linux' interfaces are missing.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") and THREADS.exists() else set()
    if not 1 < len(cores) <= MOST_CORES:
        yield
        return
    _start_all()
    before = {thread: _cores_of(thread) for thread in _names()}
    try:
        _place(cores)
        yield
    finally:
        for thread in _names():
            _bind(thread, before.get(thread, cores))


@lru_cache(maxsize=1)
def _start_all() -> None:
    """The threads that operators need, which otherwise start with the first of these."""
    from mindspore import Tensor, ops

    threads.start_all()
    ops.relu(Tensor(np.zeros(threads.SMALLEST, np.float32))).asnumpy()


def _place(cores: Set[int]) -> None:
    caller = threading.get_native_id()
    first, *others = sorted(cores)
    helpers: Dict[str, Iterator[int]] = {}
    for thread, name in sorted(_names().items()):
        if thread == caller or name.startswith(WITH_CALLER):
            _bind(thread, {first})
        else:  # the threads of a kind, on one core after another
            _bind(thread, {next(helpers.setdefault(name.rstrip("0123456789"), cycle(others)))})


def _names() -> Dict[int, str]:
    """Of all threads, by their numbers."""
    names = {}
    for folder in THREADS.iterdir():
        try:
            names[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:  # it has ended
            continue
    return names


def _cores_of(thread: int) -> Set[int]:
    try:
        return os.sched_getaffinity(thread)
    except OSError:
        return set()


def _bind(thread: int, cores: Set[int]) -> None:
    try:
        os.sched_setaffinity(thread, cores)
    except OSError:  # it has ended
        return
