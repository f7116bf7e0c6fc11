"""The training CSV: one video a row with its path, its length in frames and its motion bucket."""

import csv
import math
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from data.motion import MAX_BUCKET, Motion, motion_bucket
from data.motion_journal import read_motions
from gm.errors import UserError
from gm.files import PathLike, atomic_file, open_input, reason

PATH, LENGTH, BUCKET = COLUMNS = ("path", "length", "motion_bucket_id")
SCORE_COMMAND = "python svd_tools/score_motion.py"


class VideoRow(NamedTuple):
    """One usable row."""

    path: str  # as written, relative to the data folder
    length: int  # frames
    motion_bucket_id: float  # 0..255
    motion: Optional[Motion] = None  # where the score of each part of the video is known

    def starts(self, span: int) -> List[range]:
        """The frames from which a clip can start whose last frame is `span` frames later, for each shot."""
        shots = [(0, self.length - 1)] if self.motion is None else self.motion.shots()
        ranges = [range(first, min(last, self.length - 1) - span + 1) for first, last in shots]
        return [starts for starts in ranges if starts]

    def bucket(self, start: int, span: int) -> float:
        """The motion bucket of a clip: that of its own frames if it is known, else the whole video's."""
        score = None if self.motion is None else self.motion.score(start, start + span)
        return self.motion_bucket_id if score is None else motion_bucket(score)


def read_rows(metadata: PathLike, columns: Sequence[str], flag: str) -> Iterator[Tuple[int, Dict[str, str]]]:
    """Yields (row number in the file, {column: stripped text}) for the rows of a CSV file with a header line.

    Quoted fields, blank lines, a byte-order mark, other columns and any order of columns are accepted.

    Raises:
        UserError: the file cannot be read, is not UTF-8 CSV, or lacks a column, or a row lacks a field.
    """
    header: List[str] = []
    try:
        with open_input(metadata, "r", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            for record in reader:
                record = [field.strip() for field in record]
                if not any(record):
                    continue  # a blank line, or bare commas
                if not header:
                    header = _checked_header(record, columns, f"{flag}: {metadata}, row {reader.line_num}")
                    continue
                fields = dict(zip(header, record))
                for column in columns:
                    if not fields.get(column):
                        raise UserError(f"{flag}: {metadata}, row {reader.line_num}: {column} is empty; fill it in")
                yield reader.line_num, fields
    except OSError as error:
        raise UserError(f"{flag}: cannot read {metadata}: {reason(error)}; name a CSV file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{flag}: {metadata} is not UTF-8 text; save it as a UTF-8 CSV file") from error
    except csv.Error as error:
        raise UserError(f"{flag}: {metadata}, row {reader.line_num}: {error}; correct the quoting") from error


def read_metadata(data_dir: PathLike, metadata: PathLike, dir_flag: str, metadata_flag: str) -> List[VideoRow]:
    """Reads and checks a training CSV, and the journal that score_motion.py left beside it; every file exists.

    Args:
        data_dir: the folder that paths are relative to.
        metadata: the CSV file.
        dir_flag: the command-line flag of `data_dir`, for the error line.
        metadata_flag: the flag of `metadata`.

    Raises:
        UserError: naming the CSV and the row: a missing column, file or field, a length that is no whole number above
            0, a motion bucket that is no number or outside 0..255; or `data_dir` is no folder, or there is no row.
    """
    if not Path(data_dir).is_dir():
        raise UserError(f"{dir_flag}: {data_dir} is no folder; name the one that the paths in {metadata} start from")
    rows, motions = [], read_motions(metadata)
    for line, fields in read_rows(metadata, COLUMNS, metadata_flag):
        place = f"{metadata_flag}: {metadata}, row {line}"
        if not (Path(data_dir) / fields[PATH]).is_file():
            raise UserError(f"{place}: no file {fields[PATH]} in {data_dir}; correct the path or {dir_flag}")
        bucket, motion = _bucket(fields[BUCKET], place), motions.get(fields[PATH])
        of_the_file = motion is not None and motion_bucket(motion.score() or 0.0) == bucket  # else someone changed it
        rows.append(VideoRow(fields[PATH], _length(fields[LENGTH], place), bucket, motion if of_the_file else None))
    if not rows:
        raise UserError(f"{metadata_flag}: {metadata} holds no video below its header; make one with {SCORE_COMMAND}")
    return rows


def write_rows(path: PathLike, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file with a header line, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _checked_header(names: List[str], columns: Sequence[str], place: str) -> List[str]:
    missing = [column for column in columns if column not in names]
    if missing:
        raise UserError(
            f"{place}: no column {', '.join(missing)} among {', '.join(names)}; the header line is {','.join(columns)}"
        )
    return names


def _length(text: str, place: str) -> int:
    value = _number(text, LENGTH, place)
    if value < 1 or value != int(value):
        raise UserError(f"{place}: {LENGTH} is {text}; it is a number of frames, 1 or more")
    return int(value)


def _bucket(text: str, place: str) -> float:
    value = _number(text, BUCKET, place)
    if not 0 <= value <= MAX_BUCKET:
        raise UserError(f"{place}: {BUCKET} is {text}; it lies in 0..{MAX_BUCKET} ({SCORE_COMMAND} computes it)")
    return value


def _number(text: str, column: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: {column} is {text!r}, which is no number; correct it")
    return value
