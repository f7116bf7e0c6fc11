"""What graph mode compiled, kept between runs (MindSpore's compile cache): the next run need not compile it again.

MindSpore recognises a compiled network by the order of compilation and the program's sources alone. So each network
gets a folder of its own here, named after a hash of all that its graph depends on: its configuration, the inputs'
shapes and types, the sources, MindSpore's release and whether kernels are fused. Weights are not part of it.

A process looks up its folder once, at the first compilation. So it is the first network alone that is kept.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

import mindspore as ms
from mindspore import Tensor

from gm.backend import operators
from gm.backend.user_cache import CACHE_ENABLE, CACHE_PATH, cache_folder, environment, private_folder
from gm.files import open_private

KIND = "compiled"
LOCK = "lock"
SHARED = ("akg_kernel_meta", "kernel_build_tmp.key")  # fused kernels and their lock: of all networks together
PROJECT = Path(__file__).resolve().parents[2]
SOURCES = ("gm", "modules", "data", "svd_tools", "svd_tiny")
KEY_DIGITS = 32
KEPT = 20  # networks, the last used ones

settled = False  # whether this process has a folder already, or compiled without one

logger = logging.getLogger(__name__)


@contextmanager
def kept_compilation(recipe: Any, inputs: Sequence[Any]) -> Iterator[None]:
    """Inside, one network is called: in graph mode it is compiled if this is its first time on this machine, else read.

    Whoever sets MindSpore's variables for its cache is left alone.

    Args:
        recipe: what its graph is made from, as JSON can hold it: all that tells it from other networks.
        inputs: that it is called with: tensors and Python numbers.
    """
    global settled
    folder = None if settled or not _possible() else _prepared(recipe, inputs)
    if folder is None:
        yield
        return
    settled = True
    with open_private(folder / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process compiles it just now
            yield
            return
        with environment(**{CACHE_ENABLE: "1", CACHE_PATH: str(folder)}):
            yield
    _prune(folder.parent)


def _possible() -> bool:
    users_own = CACHE_ENABLE in os.environ or (CACHE_PATH in os.environ and not _fused())
    has_source = Path(sys.argv[0]).is_file()  # which MindSpore reads; python -c has none
    return ms.get_context("mode") == ms.GRAPH_MODE and not users_own and has_source


def _fused() -> bool:
    """Whether networks are being compiled to fused kernels."""
    return getattr(operators.current, "fused", False)


def _prepared(recipe: Any, inputs: Sequence[Any]) -> Optional[Path]:
    """The network's folder, ready to be compiled into; None where that is impossible."""
    base = cache_folder(KIND)
    if base is None:
        return None
    folder = base / _key(recipe, inputs)
    try:
        private_folder(folder)
        os.utime(folder)
        if _fused():
            _share_kernels(Path(os.environ[CACHE_PATH]), folder)
    except OSError as error:
        logger.warning("what is compiled is not kept: %s", error)
        return None
    return folder


def _share_kernels(source: Path, folder: Path) -> None:
    """Lets fused kernels be where :mod:`gm.backend.kernel_fusion` keeps them."""
    directory, lock = (source / name for name in SHARED)
    directory.mkdir(exist_ok=True)
    lock.touch()
    for path in (directory, lock):
        with suppress(FileExistsError):
            (folder / path.name).symlink_to(path)


def _key(recipe: Any, inputs: Sequence[Any]) -> str:
    shapes = [[list(x.shape), str(x.dtype)] if isinstance(x, Tensor) else repr(x) for x in inputs]
    identity = {
        "recipe": recipe,
        "inputs": shapes,
        "sources": _sources(),
        "operators": [type(operators.current).__name__, _fused()],
        "device": ms.get_context("device_target"),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]


def _sources() -> str:
    """A hash of the program's text: of these packages and of the command."""
    files = [Path(sys.argv[0]).resolve()]
    files += [path for package in SOURCES for path in sorted((PROJECT / package).rglob("*.py"))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _prune(base: Path) -> None:
    """Removes all but the networks that were used last."""

    def used(path: Path) -> float:
        with suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    with suppress(OSError):
        for path in sorted(base.iterdir(), key=used, reverse=True)[KEPT:]:
            shutil.rmtree(path, ignore_errors=True)
