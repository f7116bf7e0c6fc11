"""How long a whole run takes at full size, from the start of the program to the frames, and whether they are the same:
this project against diffusers' pipeline in eager PyTorch, with the same weights, picture and noise, guidance on, fp32.

At 256x256 pixels with 25 steps one run takes 20 to 40 minutes on two cores.

    python benchmarks/full_run.py --size 256x256 --sampling_steps 25
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from benchmarks import harness  # noqa: E402

OURS, PEER = "ours", "diffusers"
CONFIG = PROJECT / "configs/svd.yaml"
FRAMES, FPS, MOTION, AUGMENTATION, SCALES = 14, 7, 127, 0.02, (1.0, 2.5)


def noises(height: int, width: int) -> Tuple[np.ndarray, np.ndarray]:
    """Unit Gaussian noise for the picture, (1, 3, height, width), and for the latents, (1, t, 4, height/8, width/8)."""
    rng = np.random.default_rng(0)
    latents = (1, FRAMES, 4, height // 8, width // 8)
    return rng.standard_normal((1, 3, height, width), np.float32), rng.standard_normal(latents, np.float32)


def run_ours(args: argparse.Namespace, image: np.ndarray) -> np.ndarray:
    """The frames, (t, height, width, 3), uint8; made as `image_to_video.py` does it."""
    from gm.backend.runtime import setup_runtime
    from modules.compatibility import to_pixels
    from modules.pipeline import SVDPipeline

    setup_runtime(None, "CPU")
    height, width = image.shape[:2]
    pipeline = SVDPipeline(
        CONFIG,
        args.checkpoint,
        height=height,
        width=width,
        num_frames=FRAMES,
        sampling_steps=args.sampling_steps,
        noise_aug_strength=AUGMENTATION,
        fps=FPS,
        motion_bucket_id=MOTION,
        min_cfg=SCALES[0],
        max_cfg=SCALES[1],
    )
    return pipeline.animate(to_pixels(image), *noises(height, width), np.random.default_rng(0))[0]


def run_diffusers(args: argparse.Namespace, image: np.ndarray) -> np.ndarray:
    """The same frames from diffusers' pipeline."""
    from unittest.mock import patch

    import torch
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion
    from PIL import Image

    from benchmarks.peers import published_pipeline

    torch.set_num_threads(os.cpu_count())
    pipeline = published_pipeline(args.checkpoint)
    height, width = image.shape[:2]
    image_noise, noise = map(torch.from_numpy, noises(height, width))
    with patch.object(pipeline_stable_video_diffusion, "randn_tensor", lambda *_, **__: image_noise):
        frames = pipeline(
            Image.fromarray(image),
            height=height,
            width=width,
            num_frames=FRAMES,
            num_inference_steps=args.sampling_steps,
            min_guidance_scale=SCALES[0],
            max_guidance_scale=SCALES[1],
            fps=FPS,
            motion_bucket_id=MOTION,
            noise_aug_strength=AUGMENTATION,
            latents=noise,
            output_type="np",
        ).frames[0]
    return np.rint(frames * 255).astype(np.uint8)


def differences(folder: Path, contenders: List[str]) -> Dict[str, float]:
    """How far the contenders' frames are apart, in 255ths; empty if there is only one."""
    if len(contenders) < 2:
        return {}
    first, second = (np.load(folder / f"{name}.npy").astype(int) for name in contenders)
    apart = np.abs(first - second)
    return {
        "largest_difference": int(apart.max()),
        "share_of_values_that_differ": float((apart > 0).mean()),
        "standard_deviation_of_values": float(first.std()),
    }


def main() -> None:
    start = time.perf_counter()
    parser = harness.make_parser(
        __doc__, (OURS, PEER), "output/random_svd.safetensors", "benchmarks/results/full_run.json", steps=0
    )
    parser.set_defaults(repeats=1)
    parser.add_argument("--size", default="256x256", help="pixels, height x width")
    parser.add_argument("--sampling_steps", type=int, default=25)
    parser.add_argument("--image", type=Path, default=PROJECT / "examples/mountain_path.jpg")
    parser.add_argument("--folder", type=Path, help="where the frames are left, as NumPy files; by default nowhere")
    args = parser.parse_args()
    if args.child:
        from data.image_reader import fit_image, read_image

        image = fit_image(read_image(args.image), *map(int, args.size.split("x")))
        frames = (run_diffusers if args.child == PEER else run_ours)(args, image)
        seconds = time.perf_counter() - start
        np.save(args.folder / f"{args.child}.npy", frames)
        harness.report_child({"run_s": seconds})
        return
    from benchmarks.synthetic_weights import ensure_checkpoint

    ensure_checkpoint(args.checkpoint, CONFIG)
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or Path(temporary)
        args.folder.mkdir(parents=True, exist_ok=True)
        results = harness.compare(__file__, args)
        question = {"what": "a whole run at full size, fp32", "size": args.size, "sampling_steps": args.sampling_steps}
        question.update(differences(args.folder, args.contenders))
    harness.save(args.out, question, results, PEER)
    sys.stdout.write(f"{question}\n")


if __name__ == "__main__":
    main()
