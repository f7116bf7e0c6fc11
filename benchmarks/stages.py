"""How long the stages around the UNet take at full size, fp32: the decoder, or both image encoders (CLIP and VAE).

This project as `image_to_video.py` runs them, against diffusers and transformers in eager PyTorch, on the same weights
and inputs.

    python benchmarks/stages.py --stage decode --size 256x256 --frames 14
    python benchmarks/stages.py --stage encode --size 256x256
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Dict

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from benchmarks import harness  # noqa: E402
from benchmarks.stage_flops import decoder_flops, encoder_flops  # noqa: E402

OURS, PEER = "ours", "diffusers"
CONTENDERS = (OURS, PEER)
STAGES = ("decode", "encode")
CLIP_SIZE = 224
CONFIG = PROJECT / "configs/svd.yaml"


def inputs(args: argparse.Namespace) -> Dict[str, np.ndarray]:
    """Latents of a clip (t, 4, h/8, w/8), a picture (1, 3, h, w) in -1..1, and as CLIP sees it (1, 3, 224, 224)."""
    height, width = map(int, args.size.split("x"))
    rng = np.random.default_rng(0)
    return {
        "latents": rng.standard_normal((args.frames, 4, height // 8, width // 8), np.float32),
        "pixels": rng.uniform(-1, 1, (1, 3, height, width)).astype(np.float32),
        "clip_pixels": rng.standard_normal((1, 3, CLIP_SIZE, CLIP_SIZE), np.float32),
    }


def run_ours(args: argparse.Namespace) -> None:
    from gm.backend.runtime import PYNATIVE_MODE, setup_runtime

    setup_runtime(PYNATIVE_MODE, "CPU")
    from gm.config.factory import load_model
    from modules.conditioning import conditioning_inputs

    values = inputs(args)
    start = time.perf_counter()
    engine = load_model(CONFIG)
    engine.tile_size = args.tile
    engine.attach(args.checkpoint)
    if args.stage == "decode":
        engine.first_stage.load()
        clip = values["latents"][None] * np.float32(engine.scale_factor)
        harness.measure_steps(lambda: engine.decode(clip, args.chunk), start, args.steps)
    else:
        engine.conditioner.load()
        pixels = values["pixels"]
        batch = conditioning_inputs(pixels, np.zeros_like(pixels), fps=7, motion_bucket_id=127, noise_aug_strength=0.02)
        harness.measure_steps(lambda: engine.condition(batch), start, args.steps)


def run_diffusers(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(os.cpu_count())
    start = time.perf_counter()
    from benchmarks.peers import load_image_encoder, load_vae

    values = {name: torch.from_numpy(array) for name, array in inputs(args).items()}
    vae = load_vae(args.checkpoint)
    if args.stage == "decode":
        chunks = values["latents"].split(args.chunk or args.frames)

        def step() -> np.ndarray:
            with torch.no_grad():
                return torch.cat([vae.decode(chunk, len(chunk)).sample for chunk in chunks]).numpy()
    else:
        clip = load_image_encoder(args.checkpoint)

        def step() -> np.ndarray:
            with torch.no_grad():
                return clip(values["clip_pixels"]).image_embeds, vae.encode(values["pixels"]).latent_dist.mode().numpy()

    harness.measure_steps(step, start, args.steps)


def arithmetic(args: argparse.Namespace) -> Dict[str, int]:
    """Contender -> floating-point operations of the stage; they are the same."""
    from gm.weights.names import expected_parameters

    shapes, (height, width) = expected_parameters(CONFIG), (int(size) // 8 for size in args.size.split("x"))
    if args.stage == "decode":
        return dict.fromkeys(CONTENDERS, decoder_flops(shapes, args.frames, height, width))
    return dict.fromkeys(CONTENDERS, encoder_flops(shapes, height, width))


def main() -> None:
    parser = harness.make_parser(__doc__, CONTENDERS, "output/random_svd.safetensors", None, steps=2)
    parser.add_argument("--stage", choices=STAGES, default="decode", help="what is measured")
    parser.add_argument("--size", default="256x256", help="pixels, height x width")
    parser.add_argument("--frames", type=int, default=14, help="that are decoded")
    parser.add_argument("--chunk", type=int, default=0, help="frames decoded together; 0: all")
    parser.add_argument("--tile", type=int, default=0, help="this project's --SVD.tile_size; 0: whole pictures")
    args = parser.parse_args()
    if args.child:
        run_ours(args) if args.child == OURS else run_diffusers(args)
        return
    from benchmarks.synthetic_weights import ensure_checkpoint

    ensure_checkpoint(args.checkpoint, CONFIG)
    question = {"what": f"{args.stage}, fp32", "size": args.size, "frames": args.frames, "chunk": args.chunk}
    question.update({"tile": args.tile} if args.tile else {})
    out = args.out or PROJECT / f"benchmarks/results/{args.stage}.json"
    harness.save(out, question, harness.compare(__file__, args), PEER, arithmetic(args))


if __name__ == "__main__":
    main()
