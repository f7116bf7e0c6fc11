"""A ceiling on this process's memory, so that running out is an error that can be told.

Linux grants more memory than there is and kills the process that uses it, without a word. Below a ceiling at what is
free the allocation fails instead, and :mod:`gm.device.memory_errors` says what to do.
"""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

import psutil

try:
    import resource
except ImportError:  # Windows refuses what it cannot grant
    resource = None

PROCESS_STATUS = Path("/proc/self/status")
# A container's limit and its use: control groups version 2, then 1. Files that were read count as use too, but are
# given up on demand, so only anonymous memory is looked at.
CONTAINER_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat"), "anon"),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.stat"), "total_rss"),
)


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
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    ceilings = [in_use + free_bytes(), *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(ceilings), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


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
