"""How long one UNet step takes at full size, guidance on, fp32: this project in both modes, in graph mode with and
without fused kernels, against diffusers in eager PyTorch, on the same weights and inputs. "cached" is the short step
between two full ones that --SVD.feature_cache makes; "kept" reads what an earlier run compiled (--SVD.compile_cache),
if there was one, so that its first step is what counts.

    python benchmarks/unet_step.py --size 128x128 --frames 14 --repeats 3
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
from benchmarks.flops import Clip, unet_flops  # noqa: E402

CONFIG = PROJECT / "configs/svd.yaml"
PEER = "diffusers"
MODES = {"graph": 0, "unfused": 0, "pynative": 1, "cached": 0, "kept": 0}  # unfused: --SVD.fuse_kernels=False
CONTENDERS = (*MODES, PEER)


def inputs(args: argparse.Namespace):
    """Both guidance halves of all clips: x, c_noise, CLIP tokens, and the three conditioning numbers."""
    rng = np.random.default_rng(0)
    height, width, halves = *map(int, args.size.split("x")), 2 * args.clips
    x = rng.standard_normal((halves * args.frames, 8, height // 8, width // 8), np.float32)
    tokens = rng.standard_normal((halves, 1, 1024), np.float32)
    return x, np.full(halves, 0.5, np.float32), tokens, np.array([[6, 127, 0.02]] * halves, np.float32)


def run_ours(args: argparse.Namespace) -> None:
    from gm.backend.runtime import setup_runtime

    name = args.child
    setup_runtime(MODES[name], "CPU")
    from mindspore import Tensor

    from gm.backend import operators
    from gm.config.factory import instantiate, load_config
    from gm.networks.layers import sinusoidal_embedding
    from gm.sampling.feature_cache import FeatureCache

    start = time.perf_counter()
    engine = instantiate(load_config(CONFIG)["model"])
    engine.attach(args.checkpoint)
    net = engine.network.load()
    x, c_noise, tokens, numbers = inputs(args)
    embedded = [sinusoidal_embedding(Tensor(numbers[:, i]), 256).asnumpy() for i in range(3)]
    arguments = (Tensor(x), Tensor(c_noise), Tensor(tokens), Tensor(np.concatenate(embedded, axis=1)))
    cache = FeatureCache(net, interval=1 << 30)  # the very first step is a full one, the others are not

    def step() -> np.ndarray:
        if name == "cached":
            return cache(None, *arguments).asnumpy()
        return operators.current.call(net, engine.network.build.node, arguments).asnumpy()

    settings = {"fuse_kernels": name != "unfused", "compile_cache": name == "kept"}
    with operators.inference(None, True, net, **settings):
        if name == "cached":
            step()  # the full one
        harness.measure_steps(step, start, args.steps)


def run_diffusers(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(os.cpu_count())
    start = time.perf_counter()
    from benchmarks.peers import load_unet

    unet = load_unet(args.checkpoint)
    x, c_noise, tokens, numbers = (torch.from_numpy(array) for array in inputs(args))
    x = x.unflatten(0, (2 * args.clips, args.frames))

    def step():
        with torch.no_grad():
            return unet(x, c_noise, tokens, numbers).sample.flatten(0, 1).numpy()

    harness.measure_steps(step, start, args.steps)


def arithmetic(args: argparse.Namespace) -> Dict[str, int]:
    """Contender -> floating-point operations of its full step: ours needs none for queries over one context token."""
    from gm.weights.names import expected_parameters

    height, width = map(int, args.size.split("x"))
    shapes, clip = expected_parameters(CONFIG), Clip(2 * args.clips, args.frames, height // 8, width // 8)
    ours, theirs = (unet_flops(shapes, clip, one_token_shortcut) for one_token_shortcut in (True, False))
    return {"graph": ours, "kept": ours, "unfused": ours, "pynative": ours, PEER: theirs}


def main() -> None:
    parser = harness.make_parser(
        __doc__, CONTENDERS, "output/random_svd.safetensors", "benchmarks/results/unet_step.json", steps=2
    )
    parser.add_argument("--size", default="128x128", help="pixels, height x width")
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--clips", type=int, default=1, help="in a batch")
    args = parser.parse_args()
    if args.child:
        run_diffusers(args) if args.child == PEER else run_ours(args)
    else:
        from benchmarks.synthetic_weights import ensure_checkpoint

        ensure_checkpoint(args.checkpoint, CONFIG)
        shape = {"size": args.size, "frames": args.frames, "clips": args.clips}
        question = {"what": "UNet step, guidance on, fp32", **shape}
        harness.save(args.out, question, harness.compare(__file__, args), PEER, arithmetic(args))


if __name__ == "__main__":
    main()
