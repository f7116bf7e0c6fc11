"""Scores how much videos move and writes the CSV file that training reads.

    python svd_tools/score_motion.py --videos clips --output clips/videos.csv

Each row is path,length,motion_bucket_id,score,fps,width,height: frames, motion bucket (0..255, SVD's conditioning) and
motion score (shortest sides per second; see data/motion.py). Videos are scored in parallel. The results are kept beside
the CSV file in a journal, so a run that was stopped goes on where it was, and a later one scores new and changed videos
only. Training reads the journal as well: each clip gets the motion of its own frames, and none crosses a cut. Videos
that are broken, or whose motion cannot be told, are named and left out. Started by msrun, on one or several machines
that share the folder, each process scores its share, and the first one writes the CSV file.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Annotated, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

import cv2
import numpy as np
from jsonargparse import Namespace
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import file_search
from data.file_search import FRAMES_FPS
from data.metadata_csv import COLUMNS, MAX_FPS, MIN_FPS, PATH, find_video, read_rows, write_rows
from data.motion import MAX_BUCKET, motion_bucket, video_motion
from data.motion_journal import SUFFIX, Finding, Journal
from data.video_reader import VideoError, VideoReader
from gm.config.command_parser import CommandParser
from gm.config.values import Range
from gm.errors import UserError, run_command, start_log
from gm.files import FilePath, PathLike, atomic_file, make_output_dir, require_writable

logger = logging.getLogger(__name__)

MORE_COLUMNS = ("score", "fps", "width", "height")
SECONDS_TO_REFRESH = 2.0  # between two looks at what other processes have found
MAX_NAMES = 100  # of videos left out that the log gives
IN_FLIGHT = 2  # videos handed out per worker, so that none waits for the next
BUCKETS_PER_BAR = 8
SCORE_TICKS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shortest sides per second
SIZE_INCHES, DOTS_PER_INCH = (8.0, 4.5), 120


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Scores the videos that the flags name and writes the CSV file and the histogram."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    start_log(logging.INFO)
    _check(args)
    output = Path(args.output)
    histogram = Path(args.histogram or output.with_suffix(".png"))
    data_dir, names = find_videos(Path(args.videos), args.data_dir)
    make_output_dir(output.parent, "--output")
    require_writable(output, "--output")
    require_writable(histogram, "--histogram")
    share = Share.of_this_process()
    if share is None:
        return
    folders = sum((data_dir / name).is_dir() for name in names)
    if folders:
        logger.info("%d folders of numbered frames count as %g frames per second (--fps)", folders, args.fps)
    journal = Journal(f"{output}{SUFFIX}", share.rank, args.fps)
    findings = score_videos(data_dir, names, journal, args.workers or os.cpu_count() or 1, share, args.fps)
    if share.rank == 0:
        journal.remove_if_useless()
        _write(findings, args.drop_static, output, histogram)


class Share(NamedTuple):
    """Which videos are this process's: every `count`-th, from number `rank` on."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> Optional["Share"]:
        """As msrun says in the environment; None for its scheduler, which scores nothing.

        Raises:
            UserError: msrun was not told its machine's number.
        """
        count = int(os.environ.get("MS_WORKER_NUM", "1"))
        if count == 1:
            return cls()
        if os.environ.get("MS_ROLE") == "MS_SCHED":
            return None
        if "RANK_ID" not in os.environ:
            raise UserError("msrun: tell each machine its number with --node_rank")
        return cls(int(os.environ["RANK_ID"]), count)


WHOLE = Share()


def find_videos(videos: Path, data_dir: Optional[str]) -> Tuple[Path, List[str]]:
    """The folder that paths start from, and the videos' paths from there, in the order of the output.

    Args:
        videos: a folder, searched with all folders in it (:func:`data.file_search.find_videos`), or a CSV file with the
            column path.
        data_dir: the folder that paths start from; by default `videos`, or the folder of the CSV file.

    Raises:
        UserError: `videos` or `data_dir` is not there, holds no video, or `videos` lies outside `data_dir`.
    """
    root = Path(data_dir) if data_dir else videos if videos.is_dir() else videos.parent
    if not root.is_dir():
        raise UserError(f"--data_dir: {root} is no folder; name the one that the videos' paths start from")
    if not videos.is_dir():
        paths = (row[PATH] for _, row in read_rows(videos, [PATH], "--videos"))
        names = [find_video(root, path) or path for path in paths]
    else:
        try:
            base = videos.resolve().relative_to(root.resolve())
        except ValueError:
            raise UserError(f"--data_dir: {videos} does not lie in {root}; name a folder that holds it") from None
        names = [(base / found).as_posix() for found in file_search.find_videos(videos)]
    if not names:
        kinds = f" (files ending in {' '.join(file_search.VIDEO_SUFFIXES)})" if videos.is_dir() else ""
        raise UserError(f"--videos: no video in {videos}{kinds}; name another folder or CSV file")
    return root, list(dict.fromkeys(names))


def score_videos(
    data_dir: Path, names: Sequence[str], journal: Journal, workers: int, share: Share = WHOLE, fps: float = FRAMES_FPS
) -> Dict[str, Finding]:
    """Finds out about the videos of a share, in parallel, those that the journal knows excepted; all in their order.

    Of several processes the first one waits for the others, and finds out about all videos.

    Raises:
        UserError: a worker process died, or the journal cannot be written.
    """
    found = {name: journal.find(name, data_dir / name) for name in names}
    new = [name for name in names[share.rank :: share.count] if found[name] is None]
    known = sum(finding is not None for finding in found.values())
    if known:
        logger.info("%d of %d videos are scored already", known, len(names))
    with tqdm(total=len(names), initial=known, unit="video", desc="scoring", disable=None) as bar:
        for name, finding in _examined(data_dir, new, min(workers, len(new)), fps):
            journal.add(name, data_dir / name, finding)
            found[name] = finding
            bar.update()
        while share.rank == 0 and (missing := [name for name, finding in found.items() if finding is None]):
            time.sleep(SECONDS_TO_REFRESH)
            journal.refresh()
            found.update((name, journal.find(name, data_dir / name)) for name in missing)
            bar.update(sum(found[name] is not None for name in missing))
    if share.rank == 0:
        journal.merge()
    return found


def examine(path: Path, fps: float = FRAMES_FPS) -> Finding:
    """Scores one video; `fps` is the rate of folders of frames."""
    try:
        os.fspath(path).encode()  # the CSV file is UTF-8
        with VideoReader(path, fps=fps) as reader:
            height, width = reader.size
            motion = video_motion(reader)
            return Finding(reader.num_frames, round(reader.fps, 4), height, width, motion)
    except VideoError as error:
        return Finding(error=str(error))
    except UnicodeEncodeError:
        return Finding(error="its name is not UTF-8; rename it")


def draw_histogram(scores: Sequence[float], num_dropped: int, path: PathLike) -> None:
    """Draws the scores' histogram, those of the `num_dropped` stillest videos in grey, as a PNG file.

    The axis below is the motion bucket, the one above the score: one is an even scale of the other.

    Raises:
        ImportError: matplotlib is not installed.
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional; without pyplot's global state
    from matplotlib.figure import Figure

    buckets = [motion_bucket(score) for score in sorted(scores)]
    dropped, kept = buckets[:num_dropped], buckets[num_dropped:]
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(
        [kept, dropped],
        bins=np.arange(0, MAX_BUCKET + 2, BUCKETS_PER_BAR),
        stacked=True,
        color=["tab:blue", "darkgrey"],
        label=[f"{len(kept)} videos", f"{len(dropped)} left out as static"],
    )
    median = float(np.median(kept))
    axes.axvline(median, color="tab:orange", label=f"median {median:.0f}")
    axes.set(xlabel="motion_bucket_id", ylabel="videos", xlim=(0, MAX_BUCKET + 1))
    above = axes.secondary_xaxis("top")
    above.set_xticks([motion_bucket(score) for score in SCORE_TICKS], [f"{score:g}" for score in SCORE_TICKS])
    above.set_xlabel("motion score, shortest sides per second")
    axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png")


def _parser() -> CommandParser:
    summary, _, details = __doc__.split("\n\n")
    parser = CommandParser(prog="score_motion.py", description=f"{summary} {details}")
    add = parser.add_argument
    add("--videos", required=True, type=FilePath, help="a folder, searched with all in it, or a CSV with a path")
    add("--output", required=True, type=FilePath, help="the CSV file to write")
    add("--data_dir", default=None, type=Optional[FilePath],
        help="folder that the paths in the CSV files start from (default: the folder given as --videos, or the one "
             "that its CSV file lies in); give the same to train.py as --train.dataset.init_args.data_dir",
    )  # fmt: skip
    share = "of the videos to leave out: the stillest"
    add("--drop_static", default=0.0, type=Annotated[float, Range(0, 0.999)], help=f"share {share}")
    side_by_side = "processes that score videos side by side; 0: one per core"
    add("--workers", default=0, type=Annotated[int, Range(0, 256)], help=side_by_side)
    rate = Annotated[float, Range(MIN_FPS, MAX_FPS)]
    add("--fps", default=FRAMES_FPS, type=rate, help="of folders of numbered frames, which have no rate of their own")
    add("--histogram", default=None, type=Optional[FilePath],
        help="PNG file for the histogram of the scores (default: the CSV file's name with .png)",
    )  # fmt: skip
    return parser


def _check(args: Namespace) -> None:
    if Path(args.output).is_dir():
        raise UserError(f"--output: {args.output} is a folder; name the CSV file to write")
    if os.path.abspath(args.output) == os.path.abspath(args.videos):
        raise UserError(f"--output: {args.output} is the list of videos itself; name another CSV file")


def _examined(data_dir: Path, names: Sequence[str], workers: int, fps: float) -> Iterator[Tuple[str, Finding]]:
    """Yields (name, finding) as they are done."""
    if workers <= 1:
        yield from ((name, examine(data_dir / name, fps)) for name in names)
        return
    context = get_context("spawn")  # OpenCV's and the decoder's threads do not survive a fork
    waiting, pending = list(reversed(names)), {}
    try:
        with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
            while waiting or pending:
                while waiting and len(pending) < IN_FLIGHT * workers:
                    name = waiting.pop()
                    pending[pool.submit(examine, data_dir / name, fps)] = name
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    finding = future.result()
                    yield pending.pop(future), finding
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker process died while one of these was scored: {', '.join(pending.values())}; lower --workers if "
            "memory is short, or move the video away, and run the same command again: it goes on where it stopped"
        ) from error


def _start_worker() -> None:
    cv2.setNumThreads(1)  # the processes share the cores
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all: end without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> NoReturn:
    connection.wait([parent_process().sentinel])
    os._exit(1)


def _write(findings: Dict[str, Finding], drop_static: float, output: Path, histogram: Path) -> None:
    broken = {name: finding for name, finding in findings.items() if finding.error}
    for name, finding in islice(broken.items(), MAX_NAMES):
        logger.warning("left out %s: %s", name, finding.error)
    if len(broken) > MAX_NAMES:
        logger.warning("left out %d more; %s%s says why", len(broken) - MAX_NAMES, output, SUFFIX)
    sound = {name: finding for name, finding in findings.items() if name not in broken}
    if not sound:
        name, finding = next(iter(broken.items()))
        why = f"all {len(broken)} videos are broken, the first being {name}: {finding.error}"
        raise UserError(f"--videos: {why}; nothing was written")
    scores = {name: finding.motion.score() for name, finding in sound.items()}
    static = set(sorted(scores, key=scores.__getitem__)[: math.floor(drop_static * len(sound))])
    rows = [
        (name, f.length, motion_bucket(scores[name]), f"{scores[name]:.6f}", f.fps, f.width, f.height)
        for name, f in sound.items()
        if name not in static
    ]
    write_rows(output, (*COLUMNS, *MORE_COLUMNS), rows)
    sys.stdout.write(
        f"wrote {output}: {len(rows)} videos, median motion bucket {sorted(row[2] for row in rows)[len(rows) // 2]}; "
        f"left out {len(broken)} broken and {len(static)} static\n"
    )
    try:
        draw_histogram(list(scores.values()), len(static), histogram)
    except ImportError:
        logger.warning("no histogram: matplotlib is not installed (pip install matplotlib)")
    else:
        sys.stdout.write(f"wrote {histogram}\n")


if __name__ == "__main__":
    run_command(main)
