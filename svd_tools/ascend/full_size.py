"""Single steps of the full model with weights of zeros, for plans on no card and for times on one."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from gm.backend.operators import inference
from gm.model import DiffusionEngine
from gm.networks.lora import add_lora, lora_parameters
from gm.networks.precision import set_compute_dtype
from gm.training.distributed import Communicator
from gm.training.objective import DiffusionLoss, TrainInputs
from gm.training.optim import AdamW, AdamWOptions, WeightAverage
from gm.training.train_step import LossScale, TrainStep
from gm.weights.model_part import ModelPart
from gm.weights.parameters import NUMPY_TYPE, load_weights
from gm.weights.tensor_source import TensorSource
from modules.training.stages import freeze, recompute_blocks
from modules.video_unet import is_temporal

Step = Callable[[], Any]
Size = Tuple[int, int]  # of a latent
FACES = 224  # pixels that CLIP takes, both ways


class Zeros(TensorSource):
    """A checkpoint of zeros, which take no memory of the host until they are written."""

    def __init__(self, shapes: Dict[str, Tuple[int, ...]], dtype: ms.Type) -> None:
        self.shapes, self.dtype, self.path = shapes, NUMPY_TYPE[dtype], Path("zeros")

    def read(self, name: str) -> np.ndarray:
        return np.zeros(self.shapes[name], self.dtype)


def network_of_zeros(part: ModelPart, dtype: ms.Type = ms.float32) -> nn.Cell:
    """The network of a part of the model."""
    net = part.skeleton()
    load_weights(net, Zeros(part.shapes(), dtype), part.prefix, dtype)
    net.set_train(False)
    return net


def _zeros(*shapes: Tuple[int, ...], dtype: type = np.float32) -> List[Tensor]:
    return [Tensor(np.zeros(shape, dtype)) for shape in shapes]


def sample(engine: DiffusionEngine, frames: int, size: Size) -> Step:
    """A UNet step with both guidance halves, fp16."""
    net, num = network_of_zeros(engine.network, ms.float16), 2
    width = net.label_emb[0][0].in_features
    context = net.middle_block[1].transformer_blocks[0].attn2.to_k.in_features
    (c_noise,) = _zeros((num,))
    x, tokens, vector = _zeros(
        (num * frames, net.in_channels, *size), (num, 1, context), (num, width), dtype=np.float16
    )
    return _compiled(net, x, c_noise, tokens, vector)


def decode(engine: DiffusionEngine, frames: int, size: Size) -> Step:
    """The decoder over so many frames at a time, fp32."""
    return _compiled(network_of_zeros(engine.first_stage).decoder, *_zeros((1, frames, 4, *size)))


def encode(engine: DiffusionEngine, images: int, size: Size) -> Step:
    """CLIP and the VAE encoder over so many images, fp32."""
    embedders = network_of_zeros(engine.conditioner).embedders
    faces, pixels = _zeros((images, 3, FACES, FACES), (images, 3, 8 * size[0], 8 * size[1]))
    steps = [_compiled(embedders[0], faces), _compiled(embedders[3], pixels)]
    return lambda: [step() for step in steps]


def train(engine: DiffusionEngine, frames: int, size: Size, trained: str = "temporal", keep: bool = False) -> Step:
    """Forward and backward in fp16, and the update with a moving average.

    Args:
        trained: `temporal`, `all` or `lora` (of rank 16).
        keep: does without recompute and without the average.
    """
    net = network_of_zeros(engine.network, ms.float16)
    if trained == "lora":
        add_lora(net)
        parameters = list(lora_parameters(net).values())
    else:
        parameters = list(freeze(net, is_temporal if trained == "temporal" else None).values())
    for parameter in parameters:
        parameter.set_dtype(ms.float32)
        parameter.set_data(Tensor.from_numpy(np.zeros(parameter.shape, np.float32)))
    set_compute_dtype(net, ms.float16)
    if not keep:
        recompute_blocks(net)
    average: Optional[WeightAverage] = None if keep else WeightAverage(parameters, 0.9999)
    adamw = AdamW(parameters, AdamWOptions())
    step = TrainStep(DiffusionLoss(net), parameters, adamw, average, LossScale(), Communicator(), clip_norm=1.0)
    shapes = [(frames, 8, *size), (1,), (1, 1, 1024), (1, 768), (frames, 4, *size), (1,), (1,)]
    batch = TrainInputs(*(np.zeros(shape, np.float32) for shape in shapes))
    return lambda: step([batch], 1e-5)


def _compiled(net: nn.Cell, *inputs: Tensor) -> Step:
    def step() -> np.ndarray:
        with inference(compiled=True):
            return net(*inputs).asnumpy()

    return step
