"""Turns photographs into short clips with camera moves of known, constant speed: training videos for svd_tiny.

    python svd_tiny/make_clips.py --photos photos --split train --output_dir clips --clips 4000

Any folder of images will do for --photos; svd_tiny/collect_photos.py makes the one that svd_tiny was trained on. A
sixteenth of the photographs is held out (--split eval). A run that was stopped goes on where it was; the same flags
give the same clips again, however many workers make them.

It writes clip_000000.mp4 and so on, metadata.csv (path,length,motion_bucket_id: what train.py reads; the buckets are
measured in the clips) and clips.csv (also each clip's photograph, move and true speed).
"""

import json
import logging
import multiprocessing
import os
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Dict, List, Literal, Optional, Sequence, Tuple

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.metadata_csv import COLUMNS, write_rows
from data.motion import motion_bucket
from data.video_metrics import mean_flow
from data.video_reader import VideoReader
from data.video_writer import write_video
from gm.config.command_parser import CommandParser
from gm.config.values import Range
from gm.errors import UserError, run_command, start_log
from gm.files import FilePath, atomic_file, make_output_dir, open_input, parse_json, read_text, reason
from svd_tiny.clip_plan import ClipPlan, film, parse_weights, plan_clips
from svd_tiny.clip_renderer import CELL, ClipSize
from svd_tiny.photos import SPLITS, find_photos

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
MAX_CLIPS, MAX_CLIP_PIXELS = 100_000, 1 << 27
CLIP_COLUMNS = ("path", "length", "motion_bucket_id", "fps", "photo", "move", "speed")


def make_clip(plan: ClipPlan, folder: Path, size: ClipSize, fps: float, clip_format: str) -> Tuple[int, int]:
    """Renders one clip and writes it to `folder`, unless it is there already.

    Returns:
        the clip's number and its motion bucket, measured in the file.
    """
    path = folder / f"{plan.name}.{clip_format}"
    cv2.setNumThreads(1)  # the processes share the cores
    if not path.exists():
        write_clip(film(plan, size, fps), plan, path, fps)
    return plan.index, measure_bucket(path)


def write_clip(frames: np.ndarray, plan: ClipPlan, path: Path, fps: float) -> None:
    """Writes a clip as npz (arrays frames, fps and speed) or as a video, by the suffix of `path`."""
    if path.suffix == ".npz":
        with atomic_file(path) as temporary:
            np.savez_compressed(temporary, frames=frames, fps=fps, speed=plan.speed)
        return
    about = {"photo": plan.photo.name, "move": plan.kind, "speed": round(plan.speed, 5), "seed": plan.seed}
    write_video(frames, path, fps, about, path.suffix[1:])


def measure_bucket(path: Path) -> int:
    """The motion bucket of a clip's file."""
    if path.suffix == ".npz":
        try:
            with open_input(path) as file, np.load(file) as arrays:
                return motion_bucket(mean_flow(arrays["frames"], float(arrays["fps"])))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            problem = reason(error) if isinstance(error, OSError) else "it is no clip"
            raise UserError(f"--output_dir: cannot read {path}: {problem}; remove it") from error
    with VideoReader(path) as reader:
        if reader.num_frames < 2:
            return 0
        frames = reader.read_clip(0, reader.num_frames)
        return motion_bucket(mean_flow(frames, reader.fps))


def make_clips(
    plans: Sequence[ClipPlan], folder: Path, size: ClipSize, fps: float, clip_format: str, workers: int
) -> List[int]:
    """Makes all clips of a plan, in parallel.

    Returns:
        the motion bucket of each.

    Raises:
        UserError: a photograph cannot be read or a clip cannot be written.
    """
    work = partial(make_clip, folder=folder, size=size, fps=fps, clip_format=clip_format)
    progress = partial(tqdm, total=len(plans), unit="clip", disable=None)
    if workers == 1:
        return [bucket for _, bucket in progress(map(work, plans))]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return [bucket for _, bucket in sorted(progress(pool.imap_unordered(work, plans, chunksize=4)))]


def check_settings(folder: Path, settings: Dict[str, Any]) -> None:
    """Notes in `folder` what its clips are made with, and refuses to mix them with others.

    Raises:
        UserError: the folder's clips were made with other settings.
    """
    path = folder / SETTINGS
    if path.exists():
        try:
            known = dict(parse_json(read_text(path)))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"--output_dir: {path} cannot be read; remove it or name another folder") from error
        changed = [key for key in settings if known.get(key) != settings[key]]
        if changed:
            raise UserError(
                f"--output_dir: the clips in {folder} were made with other settings ({', '.join(changed)}); "
                "name another folder"
            )
        return
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def build_parser() -> CommandParser:
    """The command's flags."""
    parser = CommandParser(prog="make_clips.py", description=__doc__)
    add, count, speed = parser.add_argument, Annotated[int, Range(1, MAX_CLIPS)], Annotated[float, Range(1e-6, 1)]
    side = Annotated[int, Range(2 * CELL, 2048, 2 * CELL)]
    add("--photos", type=FilePath, required=True, help="folder of photographs, with subfolders")
    add("--output_dir", type=FilePath, required=True, help="folder to write the clips to")
    add("--split", type=Literal[SPLITS], default="train", help="which photographs")
    add("--clips", type=count, default=2000, help="how many clips")
    add("--height", type=side, default=144, help="pixels, a multiple of 8")
    add("--width", type=side, default=256, help="pixels, a multiple of 8")
    add("--frames", type=Annotated[int, Range(1, 256)], default=14, help="frames a clip")
    add("--fps", type=Annotated[float, Range(0.1, 240)], default=7, help="frames per second")
    add("--min_speed", type=speed, default=0.003, help="shortest sides of the frame per second")
    add("--max_speed", type=speed, default=0.25, help="shortest sides of the frame per second")
    add("--moves", type=str, default="", help='weights, such as "zoom_in=2,pan=1"; default: all kinds')
    add("--format", type=Literal["mp4", "npz"], default="mp4", help="npz: frames as they were rendered")
    add("--seed", type=Annotated[int, Range(0, 2**63 - 1)], default=0, help="another seed makes other clips")
    add("--workers", type=Annotated[int, Range(0, 256)], default=0, help="processes; 0: one for each core")
    return parser


def check_args(args: Any) -> None:
    """Raises a UserError for flags that do not go together."""
    if args.height * args.width * args.frames > MAX_CLIP_PIXELS:
        raise UserError(f"--height, --width, --frames: a clip of more than {MAX_CLIP_PIXELS} pixels; lower one of them")
    if args.min_speed > args.max_speed:
        raise UserError(f"--min_speed, --max_speed: {args.min_speed:g} and {args.max_speed:g}; they must rise")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    start_log(logging.INFO)
    args = build_parser().parse_args(argv)
    check_args(args)
    weights = parse_weights(args.moves)
    photos = find_photos(args.photos, args.split, "--photos")
    folder = make_output_dir(args.output_dir, "--output_dir")
    names = [path.relative_to(args.photos).as_posix() for path in photos]
    shape = {key: getattr(args, key) for key in ("height", "width", "frames", "fps", "format")}
    pace = {key: getattr(args, key) for key in ("min_speed", "max_speed", "seed")}
    check_settings(folder, {**shape, **pace, "moves": weights, "photos": names})
    size = ClipSize(args.height, args.width, args.frames)
    plans = plan_clips(photos, args.clips, weights, args.min_speed, args.max_speed, args.seed)
    try:
        buckets = make_clips(plans, folder, size, args.fps, args.format, args.workers or os.cpu_count() or 1)
    except UserError:
        if not any(folder.glob("clip_*")):  # settings of no clip
            (folder / SETTINGS).unlink()
        raise
    rows = clip_rows(plans, buckets, args)
    write_rows(folder / "clips.csv", CLIP_COLUMNS, rows)
    write_rows(folder / "metadata.csv", COLUMNS, [row[: len(COLUMNS)] for row in rows])
    sys.stdout.write(f"{len(plans)} clips of {len(photos)} photographs in {folder}\n")


def clip_rows(plans: Sequence[ClipPlan], buckets: Sequence[int], args: Any) -> List[List[object]]:
    """The rows of clips.csv."""
    return [
        [
            f"{plan.name}.{args.format}",
            args.frames,
            bucket,
            f"{args.fps:g}",
            plan.photo.relative_to(args.photos).as_posix(),
            plan.kind,
            f"{plan.speed:.5f}",
        ]
        for plan, bucket in zip(plans, buckets)
    ]


if __name__ == "__main__":
    run_command(main)
