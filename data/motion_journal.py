"""What moves when in each video, kept on disk line by line: no video is scored twice, and training reads it too."""

import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from data.file_search import FRAMES_FPS, stamp
from data.motion import MEASURE, Motion, Piece
from gm.errors import UserError
from gm.files import PathLike, atomic_file, open_private, parse_json, read_lines, reason

SUFFIX = ".journal"  # after the CSV file's name
METHOD = {"measure": MEASURE, "reader": 2}  # raised when other pixels are read


class Finding(NamedTuple):
    """What is known about one video, or what is wrong with it."""

    length: int = 0  # frames
    fps: float = 0.0
    height: int = 0  # pixels
    width: int = 0  # pixels
    motion: Motion = Motion(())
    error: str = ""  # not empty: the video cannot be used, and the rest is void


class Record(NamedTuple):
    """A line of the journal."""

    path: str  # of the video
    stamp: Optional[List[float]]  # the file's size and time of change when it was scored; None: it was not there
    finding: Finding


class Journal:
    """Findings by video path, appended to a file of JSON lines as they come in.

    A line also holds the file's size and time of change, so that a video that has changed since counts as new. A last
    line that is half-written because the process was killed, and all lines of another measure of motion, are dropped.

    Several processes, on one machine or on several that share the folder, each write a file of their own, and read all.

    Args:
        path: of rank 0's file; the others' have their rank after the name.
        rank: this process's number.
        fps: of folders of frames: at another rate, they count as new.
    """

    def __init__(self, path: PathLike, rank: int = 0, fps: float = FRAMES_FPS):
        """Reads what is there.

        Raises:
            UserError: a file cannot be read or written.
        """
        self._main, self._rank, self._fps = Path(path), rank, fps
        self._path = Path(f"{path}-{rank}") if rank else self._main
        self._records: Dict[str, Record] = {}
        self.refresh()
        own = {record.path: record for record in _records(self._path)} if rank else self._records
        with atomic_file(self._path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps({"method": METHOD}) + "\n")
            file.writelines(map(_line, own.values()))

    def refresh(self) -> None:
        """Reads what other processes have found meanwhile."""
        for path in [self._main, *self._others()]:
            self._records.update((record.path, record) for record in _records(path))

    def find(self, name: str, path: PathLike) -> Optional[Finding]:
        """What is known about the video `name`, which lies at `path`; None if nothing, or if the file has changed."""
        record = self._records.get(name)
        return record.finding if record and record.stamp == self._stamp(path) else None

    def add(self, name: str, path: PathLike, finding: Finding) -> None:
        """Adds a finding, on the disk at once.

        Raises:
            UserError: the file cannot be written.
        """
        record = self._records[name] = Record(name, self._stamp(path), finding)
        try:
            with open_private(self._path, encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {reason(error)}") from error

    def merge(self) -> None:
        """Takes over what the others have found into rank 0's file, and removes theirs."""
        others = self._others()
        if others:
            self.__init__(self._main, fps=self._fps)
        for path in others:
            with suppress(OSError):
                path.unlink()

    def _stamp(self, path: PathLike) -> Optional[List[float]]:
        with suppress(OSError):
            return stamp(path) + ([self._fps] if os.path.isdir(path) else [])
        return None

    def remove_if_useless(self) -> None:
        """Removes the file if it knows of broken videos alone."""
        if all(record.finding.error for record in self._records.values()):
            self._path.unlink(missing_ok=True)

    def _others(self) -> List[Path]:
        name = re.compile(re.escape(self._main.name) + r"-\d+")
        return sorted(path for path in self._main.parent.glob("*") if name.fullmatch(path.name))


def read_motions(metadata: PathLike) -> Dict[str, Motion]:
    """Path -> what moves in it, of the videos of a training CSV that score_motion.py wrote.

    Raises:
        UserError: the journal beside the CSV file cannot be read.
    """
    found = {record.path: record.finding for record in _records(Path(f"{metadata}{SUFFIX}"))}
    return {name: finding.motion for name, finding in found.items() if not finding.error}


def _records(path: Path) -> Iterator[Record]:
    """The whole lines of a journal, if it is of today's measure; none if there is no such file."""
    lines = read_lines(path)
    try:
        header: Any = None
        with suppress(ValueError):
            header = parse_json(next(lines, ""))
        if header == {"method": METHOD}:
            yield from filter(None, map(_parsed, lines))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {path}, the scores of earlier runs: {reason(error)}; remove it") from error


def _line(record: Record) -> str:
    return json.dumps({**record._asdict(), "finding": record.finding._asdict()}) + "\n"


def _parsed(line: str) -> Optional[Record]:
    """What :func:`_line` made a line of; None for any other."""
    with suppress(ValueError, TypeError, LookupError, OverflowError):
        fields = parse_json(line)
        known = fields["finding"]
        (pieces,) = known["motion"]
        motion = Motion(tuple(Piece(int(a), int(b), None if score is None else float(score)) for a, b, score in pieces))
        size = (int(known["length"]), float(known["fps"]), int(known["height"]), int(known["width"]))
        if not all(map(math.isfinite, [*size, *(piece.score or 0 for piece in motion.pieces)])):
            return None
        return Record(str(fields["path"]), fields["stamp"], Finding(*size, motion, str(known["error"])))
    return None
