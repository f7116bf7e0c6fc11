"""The doors to the disk: regular files are read, and what is written appears whole or not at all, under its own name.

While something is written it has a hidden random name beside its place, and this process holds a lock on it. What a
killed process left is thereby told from what is being written; the next one that writes beside it removes it.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import IO, Annotated, Any, Callable, Dict, Iterable, Iterator, List, NoReturn, Sequence, Tuple, Union

from gm.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder go unnoticed there, and nothing is removed after a killed one
    fcntl = None

PathLike = Union[str, os.PathLike]
FilePath = Annotated[str, "path"]  # of a flag: a `~` that starts it is the home folder

INLINE = 3  # differences that an error line shows; more are listed in a file
MAX_TEXT_BYTES = 1 << 26  # of a text file that is read whole
TEMPORARY = re.compile(r"\..*\.tmp-[0-9a-f]{16}(\.\w+)?")
STEM_LENGTH, SUFFIX_LENGTH = 40, 16  # characters of a name that its temporary one has; file systems allow 255 bytes
NO_FOLLOW, NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
KINDS = {
    stat.S_IFIFO: "it is a named pipe, not a regular file",
    stat.S_IFSOCK: "it is a socket, not a regular file",
    stat.S_IFCHR: "it is a device, not a regular file",
    stat.S_IFBLK: "it is a device, not a regular file",
    stat.S_IFLNK: "it is a symbolic link, which is not written through; name what it leads to",
}


def open_input(path: PathLike, mode: str = "rb", **options: Any) -> IO:
    """Opens a local regular file for reading, through links too; never waits for the other end of a pipe.

    Args:
        mode, options: of :func:`open`.

    Raises:
        OSError: there is none, it cannot be read, or `path` is a folder, pipe, socket or device.
    """
    try:
        _require_regular(os.stat(path), path)  # before it is opened: opening some devices acts on them
        descriptor = os.open(path, os.O_RDONLY | NO_WAIT)
    except ValueError as error:  # a NUL or a lone surrogate in the name
        raise OSError(errno.EINVAL, "no file can have such a name", os.fspath(path)) from error
    return _opened(descriptor, path, mode, options)


def open_private(path: PathLike, mode: str = "a", **options: Any) -> IO:
    """Opens a file of a run's own folder (a log, a lock) for appending; made if it is not there, no link is followed.

    Raises:
        OSError: it cannot be written, or `path` is anything but a regular file.
    """
    with suppress(FileNotFoundError):
        _require_regular(os.lstat(path), path)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_FOLLOW | NO_WAIT, 0o666)
    return _opened(descriptor, path, mode, options)


def read_text(path: PathLike, most: int = MAX_TEXT_BYTES) -> str:
    """A UTF-8 text file's content.

    Raises:
        OSError: see :func:`open_input`; or it has more than `most` bytes, or is no UTF-8 text.
    """
    with open_input(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most >> 20} MiB", os.fspath(path))
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, "it is no UTF-8 text", os.fspath(path)) from error


def read_lines(path: PathLike) -> Iterator[str]:
    """The lines of a text file of any length, such as a log, which a killed process may have left with a broken last
    one: what is no UTF-8 is replaced, and a line of more than `MAX_TEXT_BYTES` characters comes in parts.

    Raises:
        OSError: see :func:`open_input`.
    """
    with open_input(path, "r", encoding="utf-8", errors="replace") as file:
        yield from iter(lambda: file.readline(MAX_TEXT_BYTES), "")


def parse_json(text: Union[str, bytes]) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, is nested too deep, has endless numbers or NaN, or names a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("it names a key twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


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
    except (OSError, ValueError) as error:
        problem = reason(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{flag}: cannot write in {path}: {problem}; name a folder that you may write to") from error
    remove_leftovers(path)
    return path


@contextmanager
def cleared_if_refused(folder: PathLike, names: Sequence[str] = ()) -> Iterator[Callable[[], None]]:
    """Yields a function that says that the work begins. A UserError before leaves no new folder, if `folder` was not
    there, and in it no new files of these names."""
    folder, began = Path(folder), []
    made = list(takewhile(lambda path: not os.path.lexists(path), (folder, *folder.parents)))
    new = [folder / name for name in names if not os.path.lexists(folder / name)]
    try:
        yield lambda: began.append(True)
    except UserError:
        if not began:
            for path in new:
                _remove(path, folder=False)
            with suppress(OSError):  # others may have put something there meanwhile
                for path in made:
                    path.rmdir()
        raise


def own_folder(path: PathLike) -> Path:
    """A folder that this program names, inside one that the user named; made if it is not there.

    Raises:
        OSError: it cannot be made, or is a link, which may lead anywhere.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, KINDS[stat.S_IFLNK], os.fspath(path))
    return path


def require_writable(path: PathLike, flag: str) -> None:
    """Raises a UserError, before any work, where :func:`atomic_file` would refuse the name later."""
    try:
        _require_replaceable(Path(path))
    except OSError as error:
        raise UserError(f"{flag}: cannot write {path}: {reason(error)}") from error


def in_a_file(lines: Sequence[str]) -> str:
    """The end of an error line: a few lines themselves, or the new file in the folder for temporary files in which they
    are all listed."""
    if len(lines) <= INLINE:
        return "; ".join(lines)
    descriptor, path = tempfile.mkstemp(prefix="list-", suffix=".txt")
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(" ".join(line.splitlines()) + "\n" for line in lines)
    return f"all {len(lines)} are listed in {path}"


def require_free_space(folder: PathLike, num_bytes: int, what: str) -> None:
    """Raises a UserError unless `folder`'s disk has room for `num_bytes` more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"no room for {what}: it takes {size(num_bytes)} and {folder} has {size(free)} free; "
            "free some space or name another folder"
        )


def size(num_bytes: int) -> str:
    """A number of bytes in the unit that leaves most of its digits before the point."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.2f} {unit}"
    return f"{num_bytes} bytes"


@contextmanager
def kept_room(folder: Path, num_bytes: int, what: str) -> Iterator[Callable[[], None]]:
    """Takes room on a folder's disk, so that nothing else gets it, until what is yielded is called or the block ends.

    Raises:
        UserError: there is not so much.
    """
    require_free_space(folder, num_bytes, what)
    with _temporary(folder / "room") as (_, descriptor):
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"no room for {what}: {folder} takes no {size(num_bytes)} more") from error
        except AttributeError:  # a system on which room cannot be kept
            pass
        yield lambda: os.ftruncate(descriptor, 0)


@contextmanager
def atomic_file(path: PathLike) -> Iterator[Path]:
    """Yields a temporary file beside `path` with the same suffix; renames it on success, removes it on failure.

    The file is flushed to the disk before the rename, so a power cut leaves the old file or the new one.

    Raises:
        UserError: the file cannot be written: no room, no permission, or a folder, link or device in its place.
    """
    path = Path(path)
    try:
        _require_replaceable(path)
        with _temporary(path) as (temporary, descriptor):
            yield temporary
            os.fsync(descriptor)
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


@contextmanager
def atomic_dir(path: PathLike) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renames it on success, removes it with its content on failure.

    Raises:
        UserError: `path` exists and is not an empty folder, or cannot be written.
    """
    path = Path(path)
    try:
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists already and is not empty; remove it or name another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, folder=True) as (temporary, _):
            yield temporary
            with suppress(FileNotFoundError):
                path.rmdir()
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


@contextmanager
def reserved(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields the first of `paths` that does not exist and that no other process has reserved; reserved in the block.

    Raises:
        UserError: nothing can be written there.
    """
    for path in paths:
        digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()
        marker = path.with_name(f".{path.stem[:STEM_LENGTH]}.tmp-{digest[:16]}")
        try:
            descriptor = None if _exists(path) else _create(marker, folder=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason(error)}") from error
        if descriptor is None:
            continue
        try:
            if locked(descriptor) and not os.path.lexists(path):  # it may have appeared a moment ago
                yield path
                return
        finally:
            _remove(marker, folder=False)
            os.close(descriptor)


def _exists(path: Path) -> bool:
    """Whether a name is taken, be it by a broken link. Raises OSError for one that no file can have."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def remove_dir(path: Path) -> None:
    """Removes a folder, which is never there in part under its name.

    Raises:
        OSError: it cannot be removed.
    """
    hidden = _hidden(path)
    os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


@lru_cache(maxsize=1024)
def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes of this user left half-written in a folder; once in a process."""
    with suppress(OSError):
        for entry in [entry for entry in os.scandir(folder) if TEMPORARY.fullmatch(entry.name)]:
            with suppress(OSError):
                _remove_leftover(Path(entry.path))


def reason(error: OSError) -> str:
    """An operating system error in plain words."""
    if error.errno == errno.ENOSPC:
        return "no room left on the disk"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied"
    if error.errno == errno.EROFS:
        return "the disk is read-only"
    return error.strerror or str(error)


def _opened(descriptor: int, path: PathLike, mode: str, options: Any) -> IO:
    try:
        _require_regular(os.fstat(descriptor), path)
        return open(descriptor, mode, **options)
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(status: os.stat_result, path: PathLike) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "it is a directory, not a file", os.fspath(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, KINDS.get(kind, "it is no regular file"), os.fspath(path))


def _require_replaceable(path: Path) -> None:
    try:
        _require_regular(os.lstat(path), path)
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have such a name", os.fspath(path)) from error


def _hidden(path: Path) -> Path:
    """A random name beside `path`, with its suffix."""
    suffix = path.suffix if len(path.suffix) <= SUFFIX_LENGTH and path.suffix[1:].isalnum() else ""
    return path.with_name(f".{path.stem[:STEM_LENGTH]}.tmp-{secrets.token_hex(8)}{suffix}")


@contextmanager
def _temporary(path: Path, folder: bool = False) -> Iterator[tuple]:
    """Yields a new empty file or folder beside `path` and its locked descriptor; removes what is there at the end."""
    remove_leftovers(path.parent)
    while True:
        temporary = _hidden(path)
        descriptor = _create(temporary, folder)
        if locked(descriptor) and temporary.exists():  # else another process has just taken it for a leftover
            break
        os.close(descriptor)
    try:
        yield temporary, descriptor
    finally:
        _remove(temporary, folder)
        os.close(descriptor)


def _create(path: Path, folder: bool) -> int:
    if not folder:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
    path.mkdir()
    return os.open(path, os.O_RDONLY | NO_FOLLOW)


def locked(descriptor: int) -> bool:
    """Whether nobody else holds a lock on an open file, which this process does from now on."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # others: a file system without locks
    return True


def _remove(path: Path, folder: bool) -> None:
    if folder:
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _remove_leftover(path: Path) -> None:
    status = os.lstat(path)
    folder = stat.S_ISDIR(status.st_mode)
    if fcntl is None or status.st_uid != os.geteuid() or not (folder or stat.S_ISREG(status.st_mode)):
        return
    descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW | NO_WAIT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path, folder)
    finally:
        os.close(descriptor)
