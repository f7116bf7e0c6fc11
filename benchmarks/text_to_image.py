"""How long a step of SDXL takes at full size and 1024x576, both guidance halves, fp32, and how much memory a picture:
"ours" is a step of this project as the command does it, "offload" the whole command with `--SD.offload`, one step and
the decode; against a step of diffusers in eager PyTorch, on the same weights and inputs.

    python benchmarks/text_to_image.py --repeats 1
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import List

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from benchmarks import harness  # noqa: E402

CONFIG = PROJECT / "configs/sd_xl_base.yaml"
OURS, OFFLOAD, PEER = "ours", "offload", "diffusers"
HALVES, TOKENS, POOLED, CONTEXT = 2, 77, 1280, 2048


def inputs(args: argparse.Namespace) -> List[np.ndarray]:
    """x, the training level, the context, the pooled text and the six numbers of the size."""
    rng = np.random.default_rng(0)
    height, width = map(int, args.size.split("x"))
    x = rng.standard_normal((HALVES, 4, height // 8, width // 8), np.float32)
    context = rng.standard_normal((HALVES, TOKENS, CONTEXT), np.float32)
    sizes = np.array([[height, width, 0, 0, height, width]] * HALVES, np.float32)
    return [x, np.full(HALVES, 500, np.float32), context, rng.standard_normal((HALVES, POOLED), np.float32), sizes]


def run_ours(args: argparse.Namespace) -> None:
    from gm.backend.runtime import setup_runtime

    setup_runtime(None, "CPU")
    from mindspore import Tensor

    from gm.backend import operators
    from gm.config.factory import load_model
    from gm.networks.layers import sinusoidal_embedding

    start = time.perf_counter()
    engine = load_model(CONFIG)
    engine.attach(args.checkpoint)
    net = engine.network.load()
    x, level, context, pooled, sizes = inputs(args)
    embedded = sinusoidal_embedding(Tensor(sizes.reshape(-1)), 256).asnumpy().reshape(HALVES, -1)
    arguments = tuple(map(Tensor, (x, level, context, np.concatenate([pooled, embedded], axis=1))))
    with operators.inference(None, True, net):
        harness.measure_steps(lambda: net(*arguments).asnumpy(), start, args.steps)


def run_offloaded(args: argparse.Namespace) -> None:
    """One step and the decode by the command."""
    from svd_tools import text_to_image

    start = time.perf_counter()
    height, width = args.size.split("x")
    with tempfile.TemporaryDirectory() as folder:
        text_to_image.main(
            ["--prompt=a fox in the snow", f"--SD.config={CONFIG}", f"--SD.checkpoint={args.checkpoint}",
             f"--output_dir={folder}", f"--SD.height={height}", f"--SD.width={width}", "--SD.sampling_steps=1",
             "--SD.schedule=trailing", "--SD.offload"]
        )  # fmt: skip
    harness.report_child({"run_s": time.perf_counter() - start})


def run_diffusers(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(os.cpu_count())
    start = time.perf_counter()
    from diffusers import UNet2DConditionModel

    from benchmarks.peers import state_of
    from gm.weights.names import expected_parameters
    from svd_tools.conversion.diffusers_config import diffusers_texts

    options = json.loads(diffusers_texts(CONFIG, expected_parameters(CONFIG))["unet/config.json"])
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(options)
    unet.load_state_dict(state_of(args.checkpoint), assign=True)
    unet.eval()
    x, level, context, pooled, sizes = map(torch.from_numpy, inputs(args))
    extra = {"text_embeds": pooled, "time_ids": sizes}

    def step():
        with torch.no_grad():
            return unet(x, level, context, added_cond_kwargs=extra).sample.numpy()

    harness.measure_steps(step, start, args.steps)


def main() -> None:
    contenders = {OURS: run_ours, OFFLOAD: run_offloaded, PEER: run_diffusers}
    parser = harness.make_parser(
        __doc__, list(contenders), "output/random_sdxl.safetensors", "benchmarks/results/text_to_image.json", steps=1
    )
    parser.set_defaults(repeats=1)
    parser.add_argument("--size", default="576x1024", help="pixels, height x width")
    args = parser.parse_args()
    if args.child:
        contenders[args.child](args)
        return
    from benchmarks.synthetic_weights import ensure_checkpoint

    ensure_checkpoint(args.checkpoint, CONFIG)
    question = {"what": "SDXL's UNet step, guidance on, and a picture with --SD.offload, fp32", "size": args.size}
    harness.save(args.out, question, harness.compare(__file__, args), PEER)


if __name__ == "__main__":
    main()
