"""The memory of a process: a ceiling, how much was used, and running out of it told in one line."""

import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Tuple

import psutil

from gm.errors import UserError

try:
    import resource
except ImportError:  # Windows refuses what it cannot grant
    resource = None

# In lower case: MindSpore's CPU allocator in graph and PyNative mode, its Ascend allocator and the driver below it,
# the C++ library, oneDNN, NumPy.
OUT_OF_MEMORY_SIGNS = (
    "memory not enough",
    "memory isn't enough",
    "allocate memory failed",
    "allocate output memory failed",
    "malloc memory failed",
    "out of memory",
    "cannot allocate memory",
    "unable to allocate",
    "bad_alloc",
    "rtmalloc",
    "could not create a memory",
)


class OutOfMemory(UserError):
    """The machine's or the device's memory does not hold the work that was asked for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or one that it arose from, says that memory ran out."""
    current = error
    while current is not None:
        if isinstance(current, MemoryError):
            return True
        text = str(current).lower()
        if isinstance(current, (RuntimeError, OSError, ValueError)) and any(
            sign in text for sign in OUT_OF_MEMORY_SIGNS
        ):
            return True
        current = current.__cause__ or current.__context__
    return False


@contextmanager
def explain_out_of_memory(remedies: str) -> Iterator[None]:
    """Turns a failed allocation inside the block into an :class:`OutOfMemory`; other errors pass unchanged.

    Args:
        remedies: what to do, in the order to try it, such as "lower --SVD.num_frames".

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory; in this order, try: {remedies}") from error

PROCESS_STATUS = Path("/proc/self/status")
# A container's limit and its use: control groups version 2, then 1. Files that were read count as use too, but are
# given up on demand, so only anonymous memory is looked at.
CONTAINER_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat"), "anon"),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.stat"), "total_rss"),
)


_limits_before: Optional[Tuple[int, int]] = None


@contextmanager
def memory_limit() -> Iterator[None]:
    """Inside the block the process may allocate what is free at its start, swap included, and no more.

    Files mapped read-only do not count. A lower limit of the user's (`ulimit -d`) stays. Elsewhere than on Linux, where
    nothing is granted that is not there, nothing changes.
    """
    in_use = _allocated_bytes()
    if resource is None or in_use is None:
        yield
        return
    global _limits_before
    soft, hard = _limits_before = resource.getrlimit(resource.RLIMIT_DATA)
    ceilings = [in_use + free_bytes(), *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(ceilings), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def lift_memory_limit() -> None:
    """Gives back what :func:`memory_limit` took, before its end: a card's driver reserves address space at will."""
    if _limits_before is not None:
        resource.setrlimit(resource.RLIMIT_DATA, _limits_before)


def free_bytes() -> int:
    """Memory that can still be used: the machine's, swap included, or the container's if that is less."""
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    container = _container_free_bytes()
    return free if container is None else min(free, container)


def _container_free_bytes() -> Optional[int]:
    for limit_file, usage_file, name in CONTAINER_FILES:
        try:
            limit = limit_file.read_text().strip()
            usage = re.search(rf"^{name} (\d+)$", usage_file.read_text(), re.MULTILINE)
        except OSError:
            continue
        if limit.isdigit() and usage:  # "max" means none
            return max(0, int(limit) - int(usage.group(1)))
    return None


def _allocated_bytes() -> Optional[int]:
    """What RLIMIT_DATA counts: private writable memory, whether touched or not; None where it cannot be known."""
    try:
        size = re.search(r"^VmData:\s+(\d+) kB$", PROCESS_STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(size.group(1)) * 1024 if size else None


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss


def peak_memory_gb() -> float:
    """The card's memory on Ascend; on CPU the process's resident memory, mapped files included. In 10⁹ bytes."""
    import mindspore as ms  # a ceiling is set before it is imported

    if ms.get_context("device_target") != "CPU":
        return ms.runtime.max_memory_allocated() / 1e9
    if resource is None:
        return psutil.Process().memory_info().peak_wset / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e9
