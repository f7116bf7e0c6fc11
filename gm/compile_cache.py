"""What graph mode compiled, kept between runs (MindSpore's compile cache): the next run need not compile it again.

MindSpore recognises a compiled network by the order of compilation and the program's sources alone. So each network
gets a folder of its own here, named after a hash of all that its graph depends on: its configuration, the inputs'
shapes and types, the sources, MindSpore's release and whether kernels are fused. Weights are not part of it.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Iterator, Sequence

import mindspore as ms
from mindspore import Tensor

from gm import kernels
from gm.user_cache import cache_folder

ENABLE, PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"  # MindSpore's variables
KERNELS = "akg_kernel_meta"  # where fused kernels are, below PATH; all networks share them
PROJECT = Path(__file__).resolve().parents[1]
SOURCES = ("gm", "modules", "data", "svd_tools")
KEY_DIGITS = 32
KEPT = 20  # networks, the last used ones

logger = logging.getLogger(__name__)


@contextmanager
def kept_compilation(recipe: Any, inputs: Sequence[Any]) -> Iterator[None]:
    """Inside, one network is called: in graph mode it is compiled if this is its first time on this machine, else read.

    Who sets MS_COMPILER_CACHE_ENABLE, to 1 with a folder or to 0, is left alone.

    Args:
        recipe: what its graph is made from, as JSON can hold it: all that tells it from other networks.
        inputs: that it is called with: tensors and Python numbers.
    """
    command = Path(sys.argv[0])  # MindSpore reads its source, which python -c has not
    eager, users_own = ms.get_context("mode") != ms.GRAPH_MODE, ENABLE in os.environ
    if eager or users_own or not command.is_file():
        yield
        return
    folder = cache_folder(f"compiled-{ms.__version__}-{platform.machine()}")
    if folder is None:
        yield
        return
    final = folder / _key(recipe, inputs)
    if final.exists():
        with suppress(OSError):
            os.utime(final)
        with _compiling_into(final):
            yield
        return
    try:
        work = Path(tempfile.mkdtemp(prefix=f"{final.name}.", dir=folder))
    except OSError as error:
        logger.warning("what is compiled is not kept: cannot write to %s: %s", folder, error.strerror)
        yield
        return
    try:
        with _compiling_into(work):
            yield
        with suppress(OSError):  # another process was faster
            work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _prune(folder)


@contextmanager
def _compiling_into(folder: Path) -> Iterator[None]:
    """Points MindSpore at a folder; fused kernels stay where :mod:`gm.kernel_fusion` keeps them."""
    before = os.environ.get(PATH)
    if kernels.fusing and before is not None:
        shared, link = Path(before) / KERNELS, folder / KERNELS
        shared.mkdir(exist_ok=True)
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(shared)
    os.environ[ENABLE], os.environ[PATH] = "1", str(folder)
    try:
        yield
    finally:
        del os.environ[ENABLE]
        if before is None:
            del os.environ[PATH]
        else:
            os.environ[PATH] = before


def _key(recipe: Any, inputs: Sequence[Any]) -> str:
    shapes = [[list(x.shape), str(x.dtype)] if isinstance(x, Tensor) else repr(x) for x in inputs]
    identity = {
        "recipe": recipe,
        "inputs": shapes,
        "sources": _sources(),
        "fused": [kernels.fusing, kernels.fusing_norms],
        "device": ms.get_context("device_target"),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]


@cache
def _sources() -> str:
    """A hash of the program's text: of these packages and of the command."""
    files = [Path(sys.argv[0]).resolve()]
    files += [path for package in SOURCES for path in sorted((PROJECT / package).rglob("*.py"))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _prune(folder: Path) -> None:
    """Removes all but the networks that were used last."""

    def used(path: Path) -> float:
        with suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    for path in sorted(folder.iterdir(), key=used, reverse=True)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
