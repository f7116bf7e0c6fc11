"""The user's cache folder for what can be made again: compiled kernels and networks."""

import logging
import os
import platform
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Iterator, Optional

import mindspore as ms

CACHE_ENABLE, CACHE_PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"  # MindSpore's variables

logger = logging.getLogger(__name__)


def cache_folder(kind: str) -> Optional[Path]:
    """The user's folder for one kind of files of this release of MindSpore, made if it is not there.

    Returns:
        None, with a warning, where there can be no such folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return _made(base if os.path.isabs(base) else "", f"{kind}-{ms.__version__}-{platform.machine()}")


@cache
def _made(base: str, name: str) -> Optional[Path]:
    try:
        folder = Path(base or Path.home() / ".cache") / "mindspore_svd" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # a RuntimeError: a user without a home
        logger.warning("what is compiled is not kept for the next run: %s", error)
        return None
    if not os.access(folder, os.W_OK):
        logger.warning("what is compiled is not kept for the next run: %s cannot be written", folder)
        return None
    return folder


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables that are set inside the block and as before after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
