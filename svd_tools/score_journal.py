"""What scoring found out about each video, kept on disk line by line, so that no video is scored twice."""

import json
import os
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

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

    A line holds the file's size and time of change too: a video that has changed since is new. A half-written last
    line (the process was killed) and all lines of another scoring method are dropped when the file is opened.
    """

    def __init__(self, path: PathLike):
        """Reads what is there.

        Raises:
            UserError: the file cannot be read or written.
        """
        self._path = Path(path)
        self._records: Dict[str, Dict[str, Any]] = {}
        self._read()
        with atomic_file(self._path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(_line(record) for record in ({"method": METHOD}, *self._records.values()))

    def find(self, name: str, path: PathLike) -> Optional[Finding]:
        """What is known about the video `name`, which lies at `path`; None if nothing, or if the file has changed."""
        record = self._records.get(name)
        if record is None or record["stamp"] != _stamp(path):
            return None
        return Finding(**record["finding"])

    def add(self, name: str, path: PathLike, finding: Finding) -> None:
        """Notes a finding, on the disk at once.

        Raises:
            UserError: the file cannot be written.
        """
        record = {"path": name, "stamp": _stamp(path), "finding": finding._asdict()}
        self._records[name] = record
        try:
            with open_private(self._path, encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {reason(error)}") from error

    def _read(self) -> None:
        try:
            lines = read_text(self._path).splitlines() if self._path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self._path}, which keeps the scores of earlier runs; remove it") from error
        records = [record for record in map(_parsed, lines) if record is not None]
        if records and records[0].get("method") == METHOD:
            self._records = {record["path"]: record for record in records[1:]}


def _line(record: Dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _parsed(line: str) -> Optional[Dict[str, Any]]:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _stamp(path: PathLike) -> Optional[list]:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
