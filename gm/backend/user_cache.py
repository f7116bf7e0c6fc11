"""The user's cache folder for what can be made again: compiled kernels and networks.

What lies there is run, so a folder that somebody else owns or may write to is not used.
"""

import logging
import os
import platform
import stat
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
        parent = Path(base or Path.home() / ".cache") / "mindspore_svd"
        parent.parent.mkdir(parents=True, exist_ok=True)
        return private_folder(private_folder(parent) / name)
    except (OSError, RuntimeError) as error:  # a RuntimeError: a user without a home
        logger.warning("what is compiled is not kept for the next run: %s", error)
        return None


def private_folder(path: Path) -> Path:
    """A folder that this user alone may enter, made if it is not there.

    Raises:
        OSError: it cannot be made or written, is a link, belongs to another user, or others may write to it.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or not trusted(status):
        raise PermissionError(f"{path} belongs to another user, or others may write to it; remove it")
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
    path.chmod(0o700)
    return path


def trusted(status: os.stat_result) -> bool:
    """Whether nobody but this user may have written a file or folder."""
    mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return mine and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


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
