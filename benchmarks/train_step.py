"""How long one training step takes (forward, backward, AdamW; fp32): this project in both modes against diffusers in
eager PyTorch, on the same weights and inputs. All of the UNet of configs/svd_tiny.yaml is trained, on the batches of
svd_tiny/configs/unet_128.yaml.

    python benchmarks/train_step.py --repeats 3
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
from gm.config.factory import load_config, load_model  # noqa: E402
from gm.weights.names import expected_parameters  # noqa: E402

PEER = "diffusers"
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
MODES = {"graph": 0, "unfused": 0, "pynative": 1}
CONTENDERS = (*MODES, PEER)
CONFIG = PROJECT / "configs/svd_tiny.yaml"
PASSES = 3


def inputs(batch: int, frames: int, height: int, width: int) -> Dict[str, np.ndarray]:
    """Random values in the shapes of :class:`gm.training.objective.TrainInputs`."""
    network = load_config(CONFIG)["model"]["params"]["network_config"]["params"]
    size = (batch * frames, height // 8, width // 8)
    shapes = {
        "x": (size[0], network["in_channels"], *size[1:]),
        "c_noise": (batch,),
        "crossattn": (batch, 1, network["context_dim"]),
        "vector": (batch, network["adm_in_channels"]),
        "target": (size[0], network["out_channels"], *size[1:]),
    }
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {**values, "weight": np.ones(batch, np.float32), "sigma": np.ones(batch, np.float32)}


def run_ours(name: str, args: argparse.Namespace, batch: Dict[str, np.ndarray]) -> None:
    from gm.backend.runtime import setup_runtime

    setup_runtime(MODES[name], "CPU")
    from gm.training.distributed import Communicator
    from gm.training.objective import DiffusionLoss, TrainInputs
    from gm.training.optim import AdamW, AdamWOptions
    from gm.training.train_step import NoLossScale, TrainStep
    from modules.training.stages import unfreeze

    start = time.perf_counter()
    engine = load_model(CONFIG)
    engine.attach(args.checkpoint)
    parameters = list(unfreeze(engine.network).values())
    network = engine.network.load()
    adamw = AdamW(parameters, AdamWOptions(weight_decay=WEIGHT_DECAY))
    train_step = TrainStep(
        DiffusionLoss(network), parameters, adamw, None, NoLossScale(), Communicator(), fuse_kernels=name == "graph"
    )
    harness.measure_steps(lambda: train_step([TrainInputs(**batch)], LEARNING_RATE), start, args.steps)


def run_diffusers(args: argparse.Namespace, batch: Dict[str, np.ndarray]) -> None:
    import torch

    torch.set_num_threads(os.cpu_count())
    start = time.perf_counter()
    from benchmarks.peers import unet_of_config

    unet = unet_of_config(CONFIG, args.checkpoint).train()
    adamw = torch.optim.AdamW(unet.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    values = {name: torch.from_numpy(array) for name, array in batch.items()}
    b = len(batch["c_noise"])
    x, target = (values[name].unflatten(0, (b, -1)) for name in ("x", "target"))

    def step() -> float:
        adamw.zero_grad()
        prediction = unet(x, values["c_noise"], values["crossattn"], values["vector"]).sample
        loss = ((prediction - target) ** 2).mean((1, 2, 3, 4)) @ values["weight"] / b
        loss.backward()
        adamw.step()
        return loss.item()

    harness.measure_steps(step, start, args.steps)


def arithmetic(args: argparse.Namespace) -> Dict[str, int]:
    """Contender -> floating-point operations of its step: a forward pass, and twice as many for the gradients of the
    activations and of the weights."""
    height, width = (int(size) // 8 for size in args.size.split("x"))
    shapes, clip = expected_parameters(CONFIG), Clip(args.batch, args.frames, height, width)
    ours, theirs = (PASSES * unet_flops(shapes, clip, one_token_shortcut) for one_token_shortcut in (True, False))
    return {**dict.fromkeys(MODES, ours), PEER: theirs}


def main() -> None:
    parser = harness.make_parser(
        __doc__, CONTENDERS, "output/random_svd_tiny.safetensors", "benchmarks/results/train_step.json", steps=9
    )
    parser.add_argument("--size", default="128x128", help="pixels, height x width")
    parser.add_argument("--frames", type=int, default=8, help="in a clip")
    parser.add_argument("--batch", type=int, default=4, help="clips")
    args = parser.parse_args()
    if args.child:
        batch = inputs(args.batch, args.frames, *map(int, args.size.split("x")))
        run_diffusers(args, batch) if args.child == PEER else run_ours(args.child, args, batch)
        return
    from benchmarks.synthetic_weights import ensure_checkpoint

    ensure_checkpoint(args.checkpoint, CONFIG)
    question = {"what": "training step, fp32", "model": CONFIG.name, "size": args.size, "frames": args.frames}
    harness.save(args.out, {**question, "batch": args.batch}, harness.compare(__file__, args), PEER, arithmetic(args))


if __name__ == "__main__":
    main()
