"""How much memory a process has used at most."""

import sys

import mindspore as ms
import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss


def peak_memory_gb() -> float:
    """The card's memory on Ascend; on CPU the process's resident memory, mapped files included. In 10⁹ bytes."""
    if ms.get_context("device_target") != "CPU":
        return ms.runtime.max_memory_allocated() / 1e9
    if resource is None:
        return psutil.Process().memory_info().peak_wset / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e9
