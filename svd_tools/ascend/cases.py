"""What a card computes to be compared with a CPU: every layer, the networks of svd_tiny, and a training step."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from gm.backend import operators
from gm.backend.operators import NO_PADDING, inference, same_padding
from gm.config.factory import load_model
from gm.model import DiffusionEngine
from gm.networks.precision import set_compute_dtype
from gm.training.distributed import Communicator
from gm.training.objective import DiffusionLoss, TrainInputs
from gm.training.optim import AdamW, AdamWOptions
from gm.training.train_step import LossScale, TrainStep
from modules.training.stages import unfreeze

PROJECT = Path(__file__).resolve().parents[2]
CONFIG, CHECKPOINT = PROJECT / "configs/svd_tiny.yaml", PROJECT / "checkpoints/svd_tiny.safetensors"
TYPES = {"fp32": ms.float32, "fp16": ms.float16}
OVERFLOWING = 2.0**24  # loss scale
Result = Tuple[str, np.ndarray]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Unit Gaussian numbers, fp32, the same everywhere."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def _direct(outputs: int, kernel: Any, padding: Any, stride: int = 1) -> ops.Conv2D:
    return ops.Conv2D(outputs, kernel, pad_mode="pad", pad=padding, stride=stride)


def _calls() -> Dict[str, Tuple[str, List[np.ndarray], Tuple, Tuple]]:
    """Name -> method of the door, its tensors, and what comes before and after them."""
    picture, clip, tokens = normal(2, 64, 24, 40), normal(1, 64, 5, 960), normal(2, 300, 64)
    square, patch = normal(96, 64, 3, 3, seed=1) / 24, normal(96, 64, 8, 8, seed=1) / 64
    weight, gated, bias = normal(96, 64, seed=1) / 8, normal(256, 64, seed=1) / 8, normal(96, seed=2)
    scales, shifts = 1 + normal(64, seed=1) / 4, normal(64, seed=2)
    over_time = normal(96, 64, 3, 1, 1, seed=1) / 14
    heads = [normal(2, 4, 300, 64, seed=seed) for seed in range(3)]
    uneven = (0, 1, 0, 1)
    return {
        "linear": ("linear", [tokens, weight, bias], (), ()),
        "geglu": ("geglu", [tokens, gated, normal(256, seed=2)], (), ()),
        "conv2d": ("conv2d", [picture, square, bias], (_direct(96, 3, 1),), (1, same_padding(3))),
        "conv2d of stride 2": ("conv2d", [picture, square, bias], (_direct(96, 3, uneven, 2),), (2, uneven)),
        "conv2d of patches": ("conv2d", [picture, patch, bias], (_direct(96, 8, 0, 8),), (8, NO_PADDING)),
        "conv2d_doubled": ("conv2d_doubled", [picture, square, bias], (_direct(96, 3, 1),), ()),
        "conv_over_time": ("conv_over_time", [clip, over_time, bias], (_direct(96, (3, 1), (1, 1, 0, 0)),), ()),
        "group_norm": ("group_norm", [3 * picture + 1, 32, scales, shifts], (), (1e-5,)),
        "group_norm of a small eps": ("group_norm", [picture / 100, 32, scales, shifts], (), (1e-6,)),
        "layer_norm": ("layer_norm", [3 * tokens + 1, scales, shifts], (), (1e-5,)),
        "silu": ("silu", [4 * picture], (), ()),
        "gelu": ("gelu", [4 * picture], (), ()),
        "attention": ("attention", heads, (), ()),
    }  # fmt: skip


def layers(precision: str) -> Iterator[Result]:
    """The result of every operator of the door, by its inputs in a precision; norms' weights are fp32."""
    dtype = TYPES[precision]
    for name, (method, inputs, before, after) in _calls().items():
        norm = method.endswith("_norm")
        tensors = [
            value if isinstance(value, int) else Tensor(value, ms.float32 if norm and value.ndim == 1 else dtype)
            for value in inputs
        ]
        with inference(compiled=False):
            yield name, getattr(operators.current, method)(*before, *tensors, *after).astype(ms.float32).asnumpy()


def networks(precision: str) -> Iterator[Result]:
    """The UNet of svd_tiny, its decoder and its encoders; of these the UNet alone knows half precision."""
    engine = load_model(CONFIG)
    engine.attach(CHECKPOINT, TYPES[precision])
    net = engine.network.load()
    x, context = normal(8, net.in_channels, 16, 16), normal(1, 1, _context_width(net))
    vector = normal(1, net.label_emb[0][0].in_features)
    x, context, vector = (Tensor(value, TYPES[precision]) for value in (x, context, vector))
    with inference(compiled=True):
        yield "unet", net(x, Tensor([0.5], ms.float32), context, vector).astype(ms.float32).asnumpy()
    if precision == "fp32":
        with inference(compiled=False):
            yield "decoder", engine.first_stage.load().decode(Tensor(normal(1, 4, 4, 16, 16))).asnumpy()
            embedders = engine.conditioner.load().embedders
            clip_size = embedders[0].model.visual.image_size
            yield "image encoder", embedders[0](Tensor(normal(1, 3, clip_size, clip_size))).asnumpy()
            yield "autoencoder's encoder", embedders[3](Tensor(normal(1, 3, 64, 64))).asnumpy()


def _context_width(net: Any) -> int:
    return net.middle_block[1].transformer_blocks[0].attn2.to_k.in_features


def training_step(engine: DiffusionEngine) -> Tuple[TrainStep, TrainInputs, List[Parameter]]:
    """A step in fp16 of all of svd_tiny's UNet, at a loss scale that overflows; its batch, and what it trains."""
    engine.attach(CHECKPOINT)
    parameters = list(unfreeze(engine.network).values())
    net = engine.network.load()
    set_compute_dtype(net, ms.float16)
    adamw, scale = AdamW(parameters, AdamWOptions()), LossScale(OVERFLOWING)
    step = TrainStep(DiffusionLoss(net), parameters, adamw, None, scale, Communicator(), clip_norm=1.0)
    shapes = [(4, net.in_channels, 8, 8), (1,), (1, 1, _context_width(net)), (1, net.label_emb[0][0].in_features)]
    inputs = [normal(*shape) for shape in [*shapes, (4, net.out_channels, 8, 8)]]
    weight, sigma = np.full(1, 100.0, np.float32), np.ones(1, np.float32)
    return step, TrainInputs(*inputs, weight, sigma), parameters
