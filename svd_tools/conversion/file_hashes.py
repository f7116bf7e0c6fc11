"""SHA-256 of the files that a conversion reads, computed beside it."""

import hashlib
import threading
from pathlib import Path
from typing import Dict, Optional, Sequence

from gm.errors import UserError
from gm.files import open_input, reason

_BLOCK = 1 << 20


class FileHashes:
    """Hashes files in a thread of its own, while the conversion reads the same pages: no pass of its own.

    Used as a context manager: leaving it stops the thread.
    """

    def __init__(self, files: Sequence[Path]):
        self._files = list(files)
        self._hashes: Dict[Path, str] = {}
        self._error: Optional[UserError] = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FileHashes":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self) -> Dict[Path, str]:
        """File → hexadecimal hash, once all are known. Raises a UserError if a file could not be read."""
        self._thread.join()
        if self._error:
            raise self._error
        return self._hashes

    def _run(self) -> None:
        for path in self._files:
            try:
                self._hashes[path] = self._hash(path)
            except OSError as error:
                self._error = UserError(f"cannot read {path}: {reason(error)}")

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with open_input(path, buffering=0) as file:
            while not self._stop.is_set():
                block = file.read(_BLOCK)
                if not block:
                    break
                digest.update(block)
        return digest.hexdigest()
