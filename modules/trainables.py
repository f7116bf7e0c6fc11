"""Which parameters of the UNet are trained: the temporal ones, all, or a LoRA's."""

from typing import Callable, Dict, NamedTuple

import numpy as np
from mindspore import Parameter, nn

from gm.checkpoints.checkpoint import open_checkpoint
from gm.checkpoints.lora_file import LoRAWriter
from gm.checkpoints.weights import set_parameter
from gm.checkpoints.weights_writer import FullModelWriter, WeightsWriter
from gm.errors import UserError
from gm.files import PathLike
from gm.lora import FLAG as LORA
from gm.lora import add_lora, lora_parameters
from gm.stage import Stage
from modules.encoders import in_image_autoencoder
from modules.train_options import LoRAOptions
from modules.unet3d import is_temporal


class Trainables(NamedTuple):
    """What is trained, and how it is saved."""

    parameters: Dict[str, Parameter]  # by their name in the network
    writer: WeightsWriter


def choose_trainables(stage: Stage, temporal_only: bool, lora: LoRAOptions, seed: int) -> Trainables:
    """Loads the UNet and frees what is trained; everything else stays frozen, on the memory map of its file.

    Args:
        stage: of the UNet, attached to its checkpoint.
        temporal_only: of the layers, or of those that a LoRA may be for.
        lora: rank 0 trains the layers themselves.
        seed: of the LoRA's start.

    Raises:
        UserError: LoRA options that cannot be used.
    """
    net = stage.load()
    if lora.rank:
        names = add_lora(net, lora.rank, lora.alpha, lora.targets, seed)
        spatial = [name for name in names if not is_temporal(name)]
        if temporal_only and spatial:
            raise UserError(
                f"{LORA}targets={lora.targets} has spatial layers such as {spatial[0]}, and --train.temporal_only=True "
                "wants temporal ones only; set it to False"
            )
        parameters = lora_parameters(net)
        alpha = float(lora.rank) if lora.alpha is None else lora.alpha
        writer: WeightsWriter = LoRAWriter(alpha, lora.targets, stage.prefix)
    else:
        parameters = free(stage, is_temporal if temporal_only else _every)
        writer = FullModelWriter(stage.path, stage.prefix)
    for parameter in parameters.values():
        parameter.requires_grad = True
    return Trainables(parameters, writer)


def train_autoencoder(conditioner: Stage, first_stage: Stage) -> Trainables:
    """Frees the image autoencoder in the conditioner, all but its `post_quant_conv`, which stays the identity.

    What the first stage has under the same name and in the same shape takes its values: the temporal decoder then
    starts as the image decoder.
    """
    parameters = free(conditioner, lambda name: in_image_autoencoder(name) and ".post_quant_conv." not in name)
    others = first_stage.shapes()
    copies = {}
    for name in parameters:
        twin = first_stage.prefix + name.partition(".encoder.")[2]
        if others.get(twin) == parameters[name].shape:
            copies[twin] = conditioner.prefix + name
    return Trainables(parameters, FullModelWriter(conditioner.path, conditioner.prefix, copies))


def train_decoder(first_stage: Stage, temporal_only: bool) -> Trainables:
    """Frees the temporal decoder, or its temporal layers only."""
    parameters = free(
        first_stage, lambda name: name.startswith("decoder.") and (not temporal_only or is_temporal(name))
    )
    return Trainables(parameters, FullModelWriter(first_stage.path, first_stage.prefix))


def free(stage: Stage, trained: Callable[[str], bool]) -> Dict[str, Parameter]:
    """Loads a stage and frees the chosen parameters, with memory of their own; the others are frozen."""
    parameters = freeze(stage.load(), trained)
    own_memory(parameters, stage.path, stage.prefix)
    return parameters


def freeze(net: nn.Cell, trained: Callable[[str], bool]) -> Dict[str, Parameter]:
    """Freezes all parameters but the trained ones, which are returned by name; each knows its name in the network."""
    chosen = {}
    for name, parameter in net.parameters_and_names():
        parameter.name, parameter.requires_grad = name, trained(name)
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


def own_memory(parameters: Dict[str, Parameter], path: PathLike, prefix: str) -> None:
    """Gives parameters copies of their values: what is trained must not share the memory map of a read-only file."""
    with open_checkpoint(path) as source:
        for name, parameter in parameters.items():
            set_parameter(parameter, np.array(source.read(prefix + name), np.float32))
            source.release(prefix + name)


def _every(name: str) -> bool:
    return True
