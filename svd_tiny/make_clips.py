"""Turns photographs into short clips with camera moves of known, constant speed: training videos for svd_tiny.

    python svd_tiny/make_clips.py --photos photos --split train --output_dir clips --clips 4000

Any folder of images will do for --photos; svd_tiny/collect_photos.py makes the one that svd_tiny was trained on. A
sixteenth of the photographs is held out (--split eval). A run that was stopped goes on where it was; the same flags
give the same clips again, however many workers make them.

It writes clip_000000.mp4 and so on, metadata.csv (path,length,motion_bucket_id: what train.py reads; the buckets are
measured in the clips, as score_motion.py does) and clips.csv (also each clip's photograph, move and true speed).
"""

import json
import logging
import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.metadata_csv import COLUMNS, write_rows
from data.motion import motion_bucket, video_score
from data.video_reader import VideoReader
from data.video_writer import write_video
from gm.config.command_parser import CommandParser
from gm.errors import UserError, run_command
from gm.files import atomic_file, make_output_dir, parse_json, read_text
from svd_tiny.clip_plan import ClipPlan, film, parse_weights, plan_clips
from svd_tiny.clip_renderer import CELL, ClipSize
from svd_tiny.photos import SPLITS, find_photos
from svd_tools.video_metrics import mean_flow

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
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
    """The motion bucket of a clip's file, as score_motion.py measures it."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return motion_bucket(mean_flow(arrays["frames"], float(arrays["fps"])))
    with VideoReader(path) as reader:
        return motion_bucket(video_score(reader) if reader.num_frames > 1 else 0.0)


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
    parser.add_argument("--photos", type=str, required=True, help="folder of photographs, with subfolders")
    parser.add_argument("--output_dir", type=str, required=True, help="folder to write the clips to")
    parser.add_argument("--split", type=str, default="train", help=f"which photographs: {', '.join(SPLITS)}")
    parser.add_argument("--clips", type=int, default=2000, help="how many clips")
    parser.add_argument("--height", type=int, default=144, help="pixels, a multiple of 8")
    parser.add_argument("--width", type=int, default=256, help="pixels, a multiple of 8")
    parser.add_argument("--frames", type=int, default=14, help="frames a clip")
    parser.add_argument("--fps", type=float, default=7, help="frames per second")
    parser.add_argument("--min_speed", type=float, default=0.003, help="shortest sides of the frame per second")
    parser.add_argument("--max_speed", type=float, default=0.25, help="shortest sides of the frame per second")
    parser.add_argument("--moves", type=str, default="", help='weights, such as "zoom_in=2,pan=1"; default: all kinds')
    parser.add_argument("--format", type=str, default="mp4", help="mp4, or npz (frames as they were rendered)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other clips")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for each core")
    return parser


def check_args(args: Any) -> None:
    """Raises a UserError for a flag out of its range."""
    if args.split not in SPLITS:
        raise UserError(f"--split: {args.split} is none of {', '.join(SPLITS)}")
    if args.format not in ("mp4", "npz"):
        raise UserError(f"--format: {args.format} is none of mp4, npz")
    for flag in ("height", "width"):
        size = getattr(args, flag)
        if size < 8 or size % (2 * CELL):
            raise UserError(f"--{flag}: {size} is no multiple of {2 * CELL}; use 144 or 256, for example")
    for flag, least in (("clips", 1), ("frames", 1), ("seed", 0), ("workers", 0)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag}: {getattr(args, flag)} is too small; use {least} or more")
    if not 0 < args.fps <= 240:
        raise UserError(f"--fps: {args.fps} lies outside 0..240; use 7, for example")
    if not 0 < args.min_speed <= args.max_speed <= 1:
        raise UserError(
            f"--min_speed, --max_speed: {args.min_speed} and {args.max_speed}; they must rise and lie in 0..1"
        )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
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
    buckets = make_clips(plans, folder, size, args.fps, args.format, args.workers or os.cpu_count() or 1)
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
