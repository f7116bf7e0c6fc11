"""Chains of elementwise operators as one compiled kernel each, on CPU in graph mode (MindSpore's graph kernels, AKG).

A GELU, for one, is eighteen passes over memory operator by operator, and one when it is fused. The kernels are built
with the system's C++ compiler when a network is compiled, kept in the user's cache folder, and found there by the next
run. Without a compiler everything works as before.

At full size it takes a seventh off a step's time and a quarter off its memory (benchmarks/README.md), provided that
waiting OpenMP threads sleep (:mod:`gm.backend.runtime`). A small network is done sampling before its kernels are built.
"""

import logging
import platform
import shutil
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator, Optional

import mindspore as ms
from mindspore import nn

from gm.backend import compile_cache
from gm.backend.user_cache import CACHE_PATH, cache_folder, environment

MACHINES = ("x86_64", "aarch64")
COMPILER, MODULE = "g++", "decorator"  # what AKG needs and MindSpore does not bring along
LARGE = 100_000_000  # parameters, from which on building the kernels pays within one run
UNFUSED_SUMS = "--disable_expand_ops=BiasAddGrad"
COMPILER_LOG = "dsa_transfrom.log"  # its name as AKG spells it
OWN_FILES = "AKG_WHITE_LIST_PATH"  # where AKG may read its table of tilings; without it, it complains of each kernel

logger = logging.getLogger(__name__)


def obstacle() -> Optional[str]:
    """Why kernels cannot be fused here; None if they can."""
    if not suitable():
        return "it is for graph mode on CPU"
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        return f"{platform.system()} on {platform.machine()} is not supported"
    if shutil.which(COMPILER) is None:
        return f"there is no {COMPILER}; install a C++ compiler"
    if find_spec(MODULE) is None:
        return f"the Python package {MODULE} is missing; run pip install {MODULE}"
    return None


def suitable() -> bool:
    """Whether networks are compiled for the CPU, which alone has such kernels."""
    return ms.get_context("device_target") == "CPU" and ms.get_context("mode") == ms.GRAPH_MODE


def worth_fusing(network: nn.Cell) -> bool:
    """Whether building a network's kernels takes less time than 25 steps with them save."""
    return suitable() and sum(parameter.size for parameter in network.get_parameters()) >= LARGE


@contextmanager
def fused_kernels() -> Iterator[bool]:
    """Networks that are compiled inside the block are fused where that is possible; the value says whether it is.

    The compiler's log, which it leaves in the working directory, is removed.

    The sums of biases' gradients are left out: in one kernel with a transposition, they come out wrong by orders of
    magnitude, and differently each time (MindSpore 2.8).
    """
    reason = obstacle()
    folder = None if reason else cache_folder("kernels")
    if folder is None:
        logger.warning("no fused kernels: %s", reason or "no folder to keep them in")
        yield False
        return
    log = Path.cwd() / COMPILER_LOG
    foreign = log.exists()
    ms.set_context(enable_graph_kernel=True, graph_kernel_flags=UNFUSED_SUMS)
    try:
        with environment(**{CACHE_PATH: str(folder), OWN_FILES: str(Path(ms.__file__).parent)}):
            yield True
    finally:
        compile_cache.settled = True  # MindSpore keeps to the first folder
        ms.set_context(enable_graph_kernel=False, graph_kernel_flags="")
        if not foreign:
            log.unlink(missing_ok=True)
