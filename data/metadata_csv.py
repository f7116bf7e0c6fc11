"""The training CSV: one video a row with its path, its length in frames and its motion bucket."""

import csv
import logging
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, TextIO, Tuple

from data.file_search import FRAMES_FPS, numbered_frames
from data.motion import MAX_BUCKET, Motion, motion_bucket
from data.motion_journal import read_motions
from gm.errors import UserError
from gm.files import PathLike, atomic_file, open_input, reason

logger = logging.getLogger(__name__)

PATH, LENGTH, BUCKET = COLUMNS = ("path", "length", "motion_bucket_id")
FPS = "fps"  # a column that may be there
MIN_FPS, MAX_FPS = 1 / 30, 1000  # of any video
DELIMITERS = ",;\t"
QUOTING = (csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC)  # of a row; of one with spaces at the ends of a field
SPLIT, SPLITS = "split", ("train", "validation")  # a column that may be there
SCORE_COMMAND = "python svd_tools/score_motion.py"


class VideoRow(NamedTuple):
    """One usable row."""

    path: str  # as written, relative to the data folder
    length: int  # frames
    motion_bucket_id: float  # 0..255
    motion: Optional[Motion] = None  # where the score of each part of the video is known
    fps: Optional[float] = None  # of the video, 1/s; None for what the file says
    split: Optional[str] = None  # "train" or "validation", where the CSV file says

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
    """Yields (row number in the file, {column: text}) for the rows of a CSV file with a header line.

    Commas, semicolons or tabs between fields, names of columns in any case, quoted fields, blank lines, a byte-order
    mark, other columns and any order of columns are accepted. Spaces around a field do not count, except a path's,
    which may belong to it.

    Raises:
        UserError: the file cannot be read, is not UTF-8 CSV, or lacks a column, or a row lacks a field.
    """
    header: List[str] = []
    try:
        with open_input(metadata, "r", encoding="utf-8-sig", newline="") as file:
            reader = _reader(file)
            for record in reader:
                if not any(map(str.strip, record)) or (not header and record[0].lower().startswith("sep=")):
                    continue  # a blank line, bare delimiters, or the delimiter that Excel is told
                if not header:
                    place = f"{flag}: {metadata}, row {reader.line_num}"
                    header = _checked_header([name.strip().lower() for name in record], columns, place)
                    continue
                fields = {name: text if name == PATH else text.strip() for name, text in zip(header, record)}
                for column in columns:
                    if not fields.get(column, "").strip():
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
            0, a motion bucket that is no number or outside 0..255, a rate of no video; or `data_dir` is no folder, or
            there is no row.
    """
    if not Path(data_dir).is_dir():
        raise UserError(f"{dir_flag}: {data_dir} is no folder; name the one that the paths in {metadata} start from")
    rows, unknown, motions = [], 0, read_motions(metadata)
    for line, fields in read_rows(metadata, COLUMNS, metadata_flag):
        place = f"{metadata_flag}: {metadata}, row {line}"
        path = find_video(data_dir, fields[PATH])
        if path is None:
            raise UserError(f"{place}: no file {fields[PATH]} in {data_dir}; correct the path or {dir_flag}")
        fps = _rate(fields[FPS], place) if fields.get(FPS) else None
        bucket, motion = _bucket(fields[BUCKET], place), motions.get(path)
        of_the_file = motion is not None and motion_bucket(motion.score() or 0.0) == bucket  # else someone changed it
        length, split = _length(fields[LENGTH], place), _split(fields.get(SPLIT, ""), place)
        rows.append(VideoRow(path, length, bucket, motion if of_the_file else None, fps, split))
        unknown += fps is None and (Path(data_dir) / path).is_dir()
    if not rows:
        raise UserError(f"{metadata_flag}: {metadata} holds no video below its header; make one with {SCORE_COMMAND}")
    if unknown:
        logger.warning("%d folders of frames count as %g frames per second: no column %s", unknown, FRAMES_FPS, FPS)
    return rows


def find_video(data_dir: PathLike, path: str) -> Optional[str]:
    """A path as a CSV file has it, without the spaces around it unless they belong to it; None if there is no such
    file, nor folder of numbered frames."""
    for name in (path, path.strip()):
        with suppress(OSError, ValueError):  # a name that no file can have
            whole = Path(data_dir) / name
            if whole.is_file() or (whole.is_dir() and numbered_frames(whole)):
                return name
    return None


def write_rows(path: PathLike, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file with a header line, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        plain, quoting = (csv.writer(file, lineterminator="\n", quoting=kind) for kind in QUOTING)
        plain.writerow(columns)
        for row in rows:
            (plain if all(str(field) == str(field).strip() for field in row) else quoting).writerow(row)


def _reader(file: TextIO) -> Any:
    """A reader for the file's delimiter, and for quotes that stand behind a space if there are any."""
    header = next((line for line in file if line.strip()), "")
    delimiter = max(DELIMITERS, key=header.count)
    file.seek(0)
    spaced = any(re.search(f"(^|{delimiter}) +\"", line) for line in file)
    file.seek(0)
    return csv.reader(file, delimiter=delimiter, skipinitialspace=spaced, strict=True)


def _checked_header(names: List[str], columns: Sequence[str], place: str) -> List[str]:
    missing = [column for column in columns if column not in names]
    if missing:
        remedy = f"the header line is {','.join(columns)}"
        if PATH not in missing:
            remedy = f"`{SCORE_COMMAND} --videos=THIS.csv --output=NEW.csv` computes it"
        raise UserError(f"{place}: no column {', '.join(missing)} among {', '.join(names)}; {remedy}")
    if len(set(names) - {""}) < len(list(filter(None, names))):
        raise UserError(f"{place}: two columns have one name: {', '.join(names)}; rename one")
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


def _rate(text: str, place: str) -> float:
    value = _number(text, FPS, place)
    if not MIN_FPS <= value <= MAX_FPS:
        raise UserError(f"{place}: {FPS} is {text}; it lies in {MIN_FPS:.3f}..{MAX_FPS}")
    return value


def _split(text: str, place: str) -> Optional[str]:
    if text and text not in SPLITS:
        raise UserError(f"{place}: {SPLIT} is {text!r}; it is {' or '.join(SPLITS)}, or empty")
    return text or None


def _number(text: str, column: str, place: str) -> float:
    try:
        value = float(text.replace(",", "."))  # a decimal comma, in a file with semicolons
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: {column} is {text!r}, which is no number; correct it")
    return value
