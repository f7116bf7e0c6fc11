"""Measures a model on pictures it has not seen, and prints whether it does what it should.

    python svd_tools/evaluate.py --images photos/eval --output_dir evaluation

For every picture: how well the autoencoder gives it back, as a still clip; and, at several motion buckets and seeds,
clips: how near their first frame is to the picture, how far their colours drift, how fast they move, and how much the
temporal decoder flickers against the image decoder. The motion is compared with what a bucket stands for, or with the
training clips around it (--data_dir, --metadata).

It writes report.json, contact_sheet.png and the clips; a run that was stopped goes on where it was.
"""

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Sequence, Tuple

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.image_reader import find_images, read_image
from data.metadata_csv import read_metadata
from data.motion_bucket import motion_score
from data.video_reader import VideoError, VideoReader
from gm.config.command_parser import CommandParser
from gm.errors import UserError, run_command
from gm.files import atomic_file, make_output_dir
from svd_tools.evaluation import (
    ClipFigures,
    FlickerFigures,
    Verdict,
    judge,
    measure_clip,
    measure_flicker,
    summarise,
    training_flow,
)
from svd_tools.video_metrics import contact_sheet, psnr

PROJECT = Path(__file__).resolve().parents[1]
DEFAULT_BUCKETS = [20, 65, 110, 155, 200]
SHEET_ROWS, SHEET_COLUMNS = 8, 8
TRAINING_CLIPS = 24  # measured for each motion bucket


def evenly(items: Sequence[Any], count: int) -> List[Any]:
    """At most `count` items, evenly spread over all of them; 0 is all."""
    if not count or count >= len(items):
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


class ClipStore:
    """Generated clips on disk, so that a long evaluation can be stopped: one folder for each way to make them."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        settings = {key: value for key, value in model.pipeline.settings.items() if key != "motion_bucket_id"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = folder / f"clips_{digest}"
        self.folder.mkdir(exist_ok=True)
        self.seconds: List[float] = []  # that each clip took, of those made now

    def get(self, name: str, image: np.ndarray, bucket: int, seed: int) -> Tuple[np.ndarray, np.ndarray]:
        """(frames, latents) of a clip, made now or before; see :class:`svd_tools.evaluated_model.Clip`."""
        picture = hashlib.sha256(image.tobytes()).hexdigest()[:12]
        path = self.folder / f"{name}_{picture}_bucket{bucket}_seed{seed}.npz"
        if path.exists():
            with np.load(path) as arrays:
                return arrays["frames"], arrays["latents"]
        start = time.perf_counter()
        clip = self.model.generate(image, bucket, seed)
        self.seconds.append(time.perf_counter() - start)
        with atomic_file(path) as temporary:
            np.savez_compressed(temporary, frames=clip.frames, latents=clip.latents)
        return clip.frames, clip.latents


def evaluate(
    model: Any, images: Dict[str, np.ndarray], buckets: Sequence[int], seeds: int, store: ClipStore
) -> Tuple[List[float], List[ClipFigures], List[FlickerFigures]]:
    """Measures a model (:class:`svd_tools.evaluated_model.EvaluatedModel`) on fitted pictures.

    Returns:
        the PSNR of each reconstruction; the figures of each clip; the flicker at the lowest bucket, where most stands
        still.
    """
    stills = ((model.reconstruct(image), image) for image in images.values())
    reconstructions = [psnr(frames, np.broadcast_to(image, frames.shape)) for frames, image in stills]
    clips, flickers = [], []
    jobs = [(name, bucket, seed) for name in images for bucket in sorted(buckets) for seed in range(seeds)]
    for name, bucket, seed in tqdm(jobs, unit="clip", disable=None):
        frames, latents = store.get(name, images[name], bucket, seed)
        clips.append(measure_clip(frames, images[name], name, bucket, seed, model.pipeline.fps))
        if bucket == min(buckets) and seed == 0:
            flickers.append(measure_flicker(frames, model.decode_one_by_one(latents)))
    return reconstructions, clips, flickers


def write_report(folder: Path, summary: Dict[str, Any], verdicts: Sequence[Verdict], clips: List[ClipFigures]) -> None:
    """Writes report.json."""
    report = {
        "summary": summary,
        "verdicts": [verdict._asdict() for verdict in verdicts],
        "clips": [clip._asdict() for clip in clips],
    }
    with atomic_file(folder / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")


def table(verdicts: Sequence[Verdict]) -> str:
    """The report as text: one figure a line."""
    rows = [("figure", "value", "wanted", "met")]
    rows += [(verdict.figure, verdict.value, verdict.wanted, "yes" if verdict.met else "NO") for verdict in verdicts]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n" for row in rows)


def build_parser() -> CommandParser:
    """The command's flags."""
    parser = CommandParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("--config", type=str, default=str(PROJECT / "configs/svd_tiny.yaml"), help="YAML file of the model")
    add("--checkpoint", type=str, default=str(PROJECT / "checkpoints/svd_tiny.safetensors"), help="its weights")
    add("--images", type=str, default=str(PROJECT / "examples"), help="a picture or a folder of pictures")
    add("--limit", type=int, default=16, help="pictures at most, evenly spread over the folder; 0: all")
    add("--seeds", type=int, default=3, help="clips for each picture and motion bucket")
    add("--buckets", type=List[int], default=DEFAULT_BUCKETS, help="motion buckets, 0 to 255, such as [10,130,250]")
    add("--fps", type=int, default=7, help="that the clips are made for")
    add("--num_frames", type=Optional[int], default=None, help="of the clips; by default the model's")
    add("--sampling_steps", type=int, default=0, help="0: the YAML's")
    add("--mode", type=Literal[0, 1], default=0, help="0: graph (compiles first, for many clips); 1: PyNative")
    add("--data_dir", type=str, default="", help="folder of training clips to compare the motion with")
    add("--metadata", type=str, default="", help="their CSV: path,length,motion_bucket_id")
    add("--output_dir", type=str, default="evaluation", help="folder for the report")
    return parser


def check_args(args: Any) -> None:
    """Raises a UserError for a flag out of its range."""
    for flag, least in (("limit", 0), ("seeds", 1)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag}: {getattr(args, flag)} is too small; use {least} or more")
    if len(args.buckets) < 2 or not all(0 <= bucket <= 255 for bucket in args.buckets):
        raise UserError(f"--buckets: {args.buckets} cannot be used; name two or more motion buckets of 0 to 255")
    if bool(args.data_dir) != bool(args.metadata):
        raise UserError("--data_dir, --metadata: name both, or none")


def load_model(args: Any) -> Any:
    """The model of the flags."""
    from gm.backend.runtime import GRAPH_MODE, setup_runtime
    from modules.pipeline import SVDPipeline

    setup_runtime(args.mode)
    from svd_tools.evaluated_model import EvaluatedModel  # imports MindSpore, which must find its environment set

    options = {"num_frames": args.num_frames, "fps": args.fps, "sampling_steps": args.sampling_steps}
    try:
        pipeline = SVDPipeline(args.config, args.checkpoint, **options, fuse_kernels=args.mode == GRAPH_MODE)
    except UserError as error:
        raise UserError(str(error).replace("--SVD.", "--")) from error  # the flags' names in this command
    return EvaluatedModel(pipeline)


def measure_training_clips(args: Any, num_frames: int) -> Dict[int, float]:
    """{bucket: mean flow of the training clips around it}; where none are named, what the bucket stands for."""
    if not args.data_dir:
        return {bucket: motion_score(bucket) for bucket in sorted(args.buckets)}
    rows = read_metadata(args.data_dir, args.metadata, "--data_dir", "--metadata")

    def read(row: Any) -> Tuple[np.ndarray, float]:
        try:
            with VideoReader(Path(args.data_dir) / row.path) as reader:
                return reader.read_clip(0, min(reader.num_frames, num_frames)), reader.fps
        except VideoError as error:
            raise UserError(f"--metadata: {error}") from error

    return training_flow(rows, sorted(args.buckets), read, TRAINING_CLIPS)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args(argv)
    check_args(args)
    paths = evenly(find_images(args.images, "--images"), args.limit)
    folder = make_output_dir(args.output_dir, "--output_dir")
    model = load_model(args)
    wanted_flow = measure_training_clips(args, model.pipeline.num_frames)
    images = {path.name: model.fit(read_image(path)) for path in paths}
    store = ClipStore(model, folder)
    reconstructions, clips, flickers = evaluate(model, images, args.buckets, args.seeds, store)
    summary = summarise(reconstructions, clips, flickers, wanted_flow)
    summary["seconds_per_clip"] = float(np.mean(store.seconds)) if store.seconds else None
    verdicts = judge(summary)
    write_report(folder, summary, verdicts, clips)
    middle = sorted(args.buckets)[len(args.buckets) // 2]
    shown = [store.get(name, image, middle, 0)[0] for name, image in list(images.items())[:SHEET_ROWS]]
    Image.fromarray(contact_sheet(shown, SHEET_COLUMNS)).save(folder / "contact_sheet.png")
    sys.stdout.write(table(verdicts))
    sys.stdout.write(f"{len(images)} pictures, {args.seeds} seeds; details in {folder / 'report.json'}\n")


if __name__ == "__main__":
    run_command(main)
