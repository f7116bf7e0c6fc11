"""The score of each video, kept on disk line by line so that no video is scored twice."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from data.motion import FARNEBACK, FLOW_SIDE, MAP_SIDE, SAMPLE_SECONDS
from gm.errors import UserError
from gm.files import PathLike, atomic_file, open_private, parse_json, read_text, reason

METHOD = {**FARNEBACK, "flow_side": FLOW_SIDE, "map_side": MAP_SIDE, "seconds": SAMPLE_SECONDS}


class Finding(NamedTuple):
    """One video's score, or what is wrong with it."""

    length: int = 0  # frames
    fps: float = 0.0
    height: int = 0  # pixels
    width: int = 0  # pixels
    score: float = 0.0  # see data/motion.py
    error: str = ""  # not empty: the video is broken, and the rest is void


class Journal:
    """Findings by video path, appended to a file of JSON lines as they come in.

    A line also holds the file's size and time of change, so that a video that has changed since counts as new. A last
    line that is half-written because the process was killed, and all lines of another scoring method, are dropped.
    """

    def __init__(self, path: PathLike):
        """Reads what is there.

        Raises:
            UserError: the file cannot be read or written.
        """
        self._path = Path(path)
        self._records = {record["path"]: record for record in _read(self._path)}
        with atomic_file(self._path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in ({"method": METHOD}, *self._records.values()))

    def find(self, name: str, path: PathLike) -> Optional[Finding]:
        """What is known about the video `name`, which lies at `path`; None if nothing, or if the file has changed."""
        record = self._records.get(name)
        return Finding(**record["finding"]) if record and record["stamp"] == _stamp(path) else None

    def add(self, name: str, path: PathLike, finding: Finding) -> None:
        """Adds a finding, on the disk at once.

        Raises:
            UserError: the file cannot be written.
        """
        record = {"path": name, "stamp": _stamp(path), "finding": finding._asdict()}
        self._records[name] = record
        try:
            with open_private(self._path, encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {reason(error)}") from error


def _read(path: Path) -> List[Dict[str, Any]]:
    """The whole lines of a journal, if it is of today's method."""
    try:
        lines = read_text(path).splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}, which keeps the scores of earlier runs; remove it") from error
    records = []
    for line in lines:
        with suppress(ValueError, TypeError):
            records.append(dict(parse_json(line)))
    return records[1:] if records and records[0].get("method") == METHOD else []


def _stamp(path: PathLike) -> Optional[List[int]]:
    with suppress(OSError):
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    return None
