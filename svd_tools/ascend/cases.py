"""What a card computes to be compared: every layer with its formula, svd_tiny's networks, and a training step."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from numpy.lib.stride_tricks import sliding_window_view

from gm.backend import operators
from gm.backend.operators import NO_PADDING, Padding, inference, same_padding
from gm.config.factory import load_model
from gm.model import DiffusionEngine
from gm.networks.layers import GROUPS
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
ERF = np.vectorize(math.erf)


class Call(NamedTuple):
    """A call of the door: `method(*before, *tensors, *after)`, and its formula in double precision."""

    method: str
    tensors: List[np.ndarray]
    formula: Callable[..., np.ndarray]
    before: Tuple = ()
    after: Tuple = ()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Unit Gaussian numbers, fp32, the same everywhere."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: Padding) -> np.ndarray:
    """A convolution of (n, i, h, w) by (o, i, k, l)."""
    padded = np.pad(x, ((0, 0), (0, 0), padding[:2], padding[2:]))
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]  # n i h w k l
    products = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3)))  # n h w o
    return (products + bias).transpose(0, 3, 1, 2)


def normalised(x: np.ndarray, axes: Tuple[int, ...], eps: float) -> np.ndarray:
    """Less the mean, over the deviation."""
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def group_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Of (n, c, h, w)."""
    grouped = normalised(x.reshape(len(x), GROUPS, -1), (2,), eps).reshape(x.shape)
    return grouped * weight[:, None, None] + bias[:, None, None]


def gelu(x: np.ndarray) -> np.ndarray:
    """x·Φ(x)."""
    return x * (1 + ERF(x / math.sqrt(2))) / 2


def geglu(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """h · gelu(g)."""
    hidden, gate = np.split(x @ weight.T + bias, 2, -1)
    return hidden * gelu(gate)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax(q kᵀ / √d) v."""
    scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def calls() -> Dict[str, Call]:
    """A call of every operator that has weights or a formula of its own."""
    picture, clip, tokens = normal(2, 64, 24, 40), normal(1, 64, 5, 960), normal(2, 300, 64)
    square, patch = normal(96, 64, 3, 3, seed=1) / 24, normal(96, 64, 8, 8, seed=1) / 64
    over_time = normal(96, 64, 3, 1, 1, seed=1) / 14
    weight, gated, bias = normal(96, 64, seed=1) / 8, normal(256, 64, seed=1) / 8, normal(96, seed=2)
    scales, shifts = 1 + normal(64, seed=1) / 4, normal(64, seed=2)
    heads = [normal(2, 4, 300, 64, seed=seed) for seed in range(3)]
    uneven, one = (0, 1, 0, 1), same_padding(3)
    pictures = {"conv2d": (square, 1, one), "conv2d of stride 2": (square, 2, uneven),
                "conv2d of patches": (patch, 8, NO_PADDING)}  # fmt: skip
    found = {
        name: Call("conv2d", [picture, taps, bias], partial(conv, stride=stride, padding=sides),
                   (_direct(taps, sides, stride),), (stride, sides))
        for name, (taps, stride, sides) in pictures.items()
    }  # fmt: skip
    norms = {"group_norm": (3 * picture + 1, 1e-5), "group_norm of a small eps": (picture / 100, 1e-6)}
    for name, (x, eps) in norms.items():
        found[name] = Call("group_norm", [x, scales, shifts], partial(group_norm, eps=eps), (), (eps,))
    return {
        **found,
        "conv2d_doubled": Call("conv2d_doubled", [picture, square, bias], lambda x, w, b: conv(
            x.repeat(2, 2).repeat(2, 3), w, b, 1, one), (_direct(square, one),)),
        "conv_over_time": Call("conv_over_time", [clip, over_time, bias], lambda x, w, b: conv(
            x, w[..., 0], b, 1, (1, 1, 0, 0)), (_direct(over_time[..., 0], (1, 1, 0, 0)),)),
        "linear": Call("linear", [tokens, weight, bias], lambda x, w, b: x @ w.T + b),
        "geglu": Call("geglu", [tokens, gated, normal(256, seed=2)], geglu),
        "layer_norm": Call("layer_norm", [3 * tokens + 1, scales, shifts], lambda x, w, b: normalised(
            x, (2,), 1e-5) * w + b, (), (1e-5,)),
        "silu": Call("silu", [4 * picture], lambda x: x / (1 + np.exp(-x))),
        "gelu": Call("gelu", [4 * picture], gelu),
        "attention": Call("attention", heads, attention),
    }  # fmt: skip


def _direct(weight: np.ndarray, padding: Padding, stride: int = 1) -> ops.Conv2D:
    return ops.Conv2D(weight.shape[0], weight.shape[2:4], pad_mode="pad", pad=padding, stride=stride)


def layers(precision: str) -> Iterator[Tuple[str, np.ndarray, np.ndarray]]:
    """Each operator's name, its result by inputs in a precision (norms' weights in fp32), and the formula's by them."""
    dtype = TYPES[precision]
    for name, call in calls().items():
        norm = call.method.endswith("_norm")
        tensors = [Tensor(x, ms.float32 if norm and x.ndim == 1 else dtype) for x in call.tensors]
        expected = call.formula(*(tensor.asnumpy().astype(np.float64) for tensor in tensors))
        if call.method == "group_norm":
            tensors.insert(1, GROUPS)
        with inference(compiled=False):
            result = getattr(operators.current, call.method)(*call.before, *tensors, *call.after)
        yield name, result.astype(ms.float32).asnumpy(), expected


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
