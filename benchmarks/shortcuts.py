"""What the options that trade quality for time cost on svd_tiny: seconds a clip, and the frames' PSNR against the full
run with the same noise (25 steps, guidance 1.0 to 2.5, as SVD itself is sampled).

    python benchmarks/shortcuts.py --images examples
    python benchmarks/shortcuts.py --images examples --size 256 --contenders full tile_size=128 --out tiles.json
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Mapping

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from benchmarks import harness  # noqa: E402

CONFIG = PROJECT / "configs/svd_tiny.yaml"
FULL_RUN = "full"
FULL: Mapping[str, Any] = {"sampling_steps": 25, "min_cfg": 1.0, "max_cfg": 2.5, "motion_bucket_id": 110}
SHORTCUTS: Dict[str, Dict[str, Any]] = {
    FULL_RUN: {},
    "feature_cache=2": {"feature_cache": 2},
    "feature_cache=3": {"feature_cache": 3},
    "guidance_interval=[0.5,100]": {"guidance_interval": (0.5, 100.0)},
    "sampling_steps=10": {"sampling_steps": 10},
    "sampling_steps=10 schedule=ays": {"sampling_steps": 10, "schedule": "ays"},
    "sampling_steps=10 sampler=dpmpp2m": {"sampling_steps": 10, "sampler": "dpmpp2m"},
}
TILES = "tile_size=128"  # for pictures that are larger than that
CONTENDERS = {**SHORTCUTS, TILES: {"tile_size": 128}}


def run(args: argparse.Namespace) -> None:
    """Samples every picture with one shortcut, after one clip for compiling; leaves the frames in the folder."""
    from gm.backend.runtime import GRAPH_MODE, setup_runtime

    setup_runtime(GRAPH_MODE, "CPU")
    from data.file_search import find_images
    from data.image_reader import read_image
    from modules.pipeline import SVDPipeline

    settings = {**FULL, **CONTENDERS[args.child], "height": args.size, "width": args.size}
    pipeline = SVDPipeline(CONFIG, args.checkpoint, compile_cache=False, **settings)
    images = [read_image(path) for path in find_images(args.images, "--images")[: args.limit]]
    pipeline(images[0], seed=0)
    clips: List[np.ndarray] = []
    seconds = [harness.timed(lambda image=image: clips.append(pipeline(image, seed=0))) for image in images]
    np.save(Path(args.folder) / f"{args.child}.npy", np.stack(clips))
    harness.report_child({"clip_s": median(seconds)})


def mean_psnr(folder: Path, name: str) -> float:
    """Of all clips against the full run's."""
    from data.video_metrics import psnr

    clips, full = (np.load(folder / f"{run}.npy") for run in (name, FULL_RUN))
    return float(np.mean([psnr(clip, whole) for clip, whole in zip(clips, full)]))


def main() -> None:
    parser = harness.make_parser(
        __doc__, tuple(CONTENDERS), "checkpoints/svd_tiny.safetensors", "benchmarks/results/shortcuts.json", steps=0
    )
    parser.set_defaults(repeats=1, contenders=list(SHORTCUTS))
    parser.add_argument("--size", type=int, default=128, help="height and width of the clips in pixels")
    parser.add_argument("--images", type=Path, default=PROJECT / "examples", help="a folder")
    parser.add_argument("--limit", type=int, default=4, help="pictures, the first ones")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run(args)
        return
    if FULL_RUN not in args.contenders:
        parser.error(f"--contenders lacks {FULL_RUN}, which the others are held against")
    with tempfile.TemporaryDirectory() as folder:
        args.folder = folder
        results = harness.compare(__file__, args)
        for name in set(results) - {FULL_RUN}:
            results[name] = [{**figures, "psnr_db": mean_psnr(Path(folder), name)} for figures in results[name]]
    question = {"what": "a clip of svd_tiny", "full": dict(FULL), "pictures": args.limit, "size": args.size}
    harness.save(args.out, question, results, FULL_RUN)


if __name__ == "__main__":
    main()
