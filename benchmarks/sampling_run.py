"""How long a whole run of svd_tiny takes, from the start of the program to the written video: this project for the
first time ("cold": nothing compiled is there) and again ("warm"), against diffusers' pipeline in eager PyTorch, with
the same weights, picture, size and number of steps.

    python benchmarks/sampling_run.py --repeats 3
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from benchmarks import harness  # noqa: E402

COLD, WARM, PEER = "cold", "warm", "diffusers"
CONTENDERS = (COLD, WARM, PEER)
CONFIG = PROJECT / "configs/svd_tiny.yaml"
FPS = 7
CACHE = "cache"


def measure(args: argparse.Namespace, start: float) -> None:
    """The run of one contender: the first video from the program's start on, and a second one after it."""
    if args.child == COLD:
        shutil.rmtree(Path(args.folder) / CACHE, ignore_errors=True)
    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):  # a cold run fills it for the warm one after it
        os.environ[name] = str(Path(args.folder) / CACHE)
    make_video = prepare_diffusers(args) if args.child == PEER else prepare_ours(args)
    make_video()
    first = time.perf_counter() - start
    harness.report_child({"first_video_s": first, "next_video_s": harness.timed(make_video)})


def prepare_ours(args: argparse.Namespace) -> Callable[[], None]:
    """As `image_to_video.py` does it."""
    from gm.backend.runtime import setup_runtime
    from image_to_video import animate, build_parser, build_pipeline, check_video_flags

    flags = [f"--image={args.image}", f"--output_dir={args.folder}", f"--SVD.checkpoint={args.checkpoint}"]
    flags = build_parser().parse_args([*flags, f"--SVD.sampling_steps={args.sampling_steps}", f"--SVD.fps={FPS}"])
    check_video_flags(flags)
    runtime = setup_runtime(None, flags.device_target)
    pipeline = build_pipeline(flags)
    return lambda: animate(pipeline, args.image, flags, runtime)


def prepare_diffusers(args: argparse.Namespace) -> Callable[[], None]:
    """The same clip from diffusers, written by this project's video writer."""
    import numpy as np
    import torch
    from PIL import Image

    from benchmarks.peers import pipeline_of_config
    from data.image_reader import fit_image, read_image
    from data.video_writer import write_video
    from gm.config.factory import load_config

    torch.set_num_threads(os.cpu_count())
    params = load_config(CONFIG)["model"]["params"]
    pipeline = pipeline_of_config(CONFIG, args.checkpoint)
    scales = params["sampler_config"]["params"]["guider_config"]["params"]

    def make_video() -> None:
        image = Image.fromarray(fit_image(read_image(args.image), params["height"], params["width"]))
        frames = pipeline(
            image,
            height=params["height"],
            width=params["width"],
            num_frames=params["num_frames"],
            num_inference_steps=args.sampling_steps,
            min_guidance_scale=scales.get("min_scale", 1.0),
            max_guidance_scale=scales["max_scale"],
            fps=FPS,
            generator=torch.manual_seed(0),
            output_type="np",
        ).frames[0]
        write_video(np.rint(frames * 255).astype(np.uint8), Path(args.folder) / "peer.mp4", FPS, {}, "mp4")

    return make_video


def main() -> None:
    start = time.perf_counter()
    parser = harness.make_parser(
        __doc__, CONTENDERS, "checkpoints/svd_tiny.safetensors", "benchmarks/results/sampling_run.json", steps=0
    )
    parser.add_argument("--sampling_steps", type=int, default=10)
    parser.add_argument("--image", type=Path, default=PROJECT / "examples/mountain_path.jpg")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args, start)
        return
    question = {"what": "a whole run of svd_tiny, fp32", "sampling_steps": args.sampling_steps}
    with tempfile.TemporaryDirectory() as folder:
        args.folder = folder
        harness.save(args.out, question, harness.compare(__file__, args), PEER)


if __name__ == "__main__":
    main()
