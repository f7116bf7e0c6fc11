"""How loops are compiled and spread over the cores."""

import logging
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any, Callable

import numba

SMALLEST = 1 << 14  # numbers for which a second thread pays
START_SECONDS = 1e-3  # in which a thread takes nothing else, so that the next task starts another
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}  # inf and nan stay

logger = logging.getLogger(__name__)


def kernel(function: Callable) -> Callable:
    """Compiles a function when it is first called, and keeps what was compiled beside its source or in Numba's cache
    folder (NUMBA_CACHE_DIR); where neither can be written, or others might, each process compiles it again."""
    with suppress(RuntimeError):
        kept = numba.njit(cache=True, **OPTIONS)(function)
        if _as_safe_as(kept.stats.cache_path, os.path.dirname(function.__code__.co_filename)):
            return kept
        logger.warning("others may write to %s: what is compiled is not kept there", kept.stats.cache_path)
    return numba.njit(**OPTIONS)(function)


def _as_safe_as(folder: str, sources: str) -> bool:
    """Whether nobody may have written into a folder, what is in there being run, who may not change the sources too."""
    if not hasattr(os, "geteuid"):
        return True
    status, beside = os.stat(folder), os.stat(sources)
    more_writers = status.st_mode & ~beside.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid in (os.geteuid(), beside.st_uid) and not more_writers


def inlined(function: Callable) -> Callable:
    """A part of loops, which is written into these before they are compiled.

    What is only called cannot be vectorised together with its caller, which takes four times as long where it returns
    several numbers. Arrays must be contiguous for it, too: `x[k, row]` and `x[k, row, first:last]`, not `x[:, row][k]`.

    Numba compiles what it has kept anew when a loop's own file changes: a piece of loops of another file must be no
    more than a name for some rows.
    """
    return numba.njit(inline="always", **OPTIONS)(function)


def parallel_for(function: Callable, count: int, size: int, *args: Any) -> None:
    """`function(0, count, *args)`, in parts beside each other.

    Args:
        function: a loop over a range of rows, which are independent of each other.
        count: of the rows.
        size: how many numbers these are in all.
    """
    parts = min(_cores(), count) if size >= SMALLEST else 1
    bounds = [count * part // parts for part in range(parts + 1)]
    others = [_pool().submit(function, *bounds[part : part + 2], *args) for part in range(1, parts)]
    function(*bounds[:2], *args)
    for other in others:
        other.result()


def start_all() -> None:
    """Starts the threads that loops are spread over; otherwise the first loops do."""
    for started in [_pool().submit(time.sleep, START_SECONDS) for _ in range(1, _cores())]:
        started.result()


@lru_cache(maxsize=1)
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of these threads
    return ThreadPoolExecutor(max(1, _cores() - 1), thread_name_prefix="loops")
