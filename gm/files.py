"""Files that appear whole or not at all, and the checks made before anything is written."""

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Union

from gm.errors import UserError

PathLike = Union[str, os.PathLike]


def make_output_dir(path: PathLike, flag: str) -> Path:
    """Creates a folder (parents included) and checks that files can be written in it.

    Args:
        path: the folder.
        flag: the command-line flag that named it, for the error line.

    Raises:
        UserError: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"{flag}: cannot write in {path}: {reason(error)}; name a folder that you may write to"
        ) from error
    return path


def require_free_space(folder: PathLike, num_bytes: int, what: str) -> None:
    """Raises a UserError unless `folder`'s disk has room for `num_bytes` more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"no room for {what}: it takes {num_bytes / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free; "
            "free some space or name another folder"
        )


@contextmanager
def atomic_file(path: PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` with the same suffix; renames it on success, removes it on failure.

    The file is flushed to the disk before the rename, so a power cut leaves the old file or the new one.

    Raises:
        UserError: the file cannot be written (no room, no permission, a folder in its place).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: PathLike) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renames it on success, removes it with its content on failure.

    Raises:
        UserError: `path` exists and is not an empty folder, or cannot be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already and is not empty; remove it or name another folder")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def reason(error: OSError) -> str:
    """An operating system error in plain words."""
    if error.errno == errno.ENOSPC:
        return "no room left on the disk"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied"
    if error.errno == errno.EROFS:
        return "the disk is read-only"
    return error.strerror or str(error)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
