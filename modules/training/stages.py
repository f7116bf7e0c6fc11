"""What each stage of training trains, with which loss, from which inputs, and how it is saved."""

import logging
from typing import Callable, Dict, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from gm.errors import UserError
from gm.files import PathLike
from gm.model import DiffusionEngine, Stage
from gm.networks.lora import FLAG as LORA
from gm.networks.lora import add_lora, lora_parameters
from gm.networks.precision import set_compute_dtype
from gm.training.autoencoder_loss import AutoencoderLoss, DecoderLoss, ReconstructionLoss
from gm.training.conditioning_dropout import ConditioningDropout
from gm.training.frozen_encoders import FrozenEncoders
from gm.training.loss import DiffusionLoss
from gm.training.noise_levels import LogNormal
from gm.training.objective import Objective
from gm.training.recipes import AutoencoderRecipe, DecoderRecipe, DiffusionRecipe, Recipe
from gm.weights.checkpoint import open_checkpoint
from gm.weights.lora_file import LoRAWriter
from gm.weights.parameters import set_parameter
from gm.weights.weights_writer import FullModelWriter, WeightsWriter
from modules.encoders import image_autoencoder, in_image_autoencoder
from modules.training.options import LoRAOptions, TrainingOptions, pick
from modules.video_unet import VideoUNet, is_temporal


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

def recompute_blocks(unet: VideoUNet) -> None:
    """Makes every residual block and transformer recompute its activations: less memory, about a third more time."""
    for stage in [*unet.input_blocks, unet.middle_block, *unet.output_blocks]:
        for block in stage:
            block.recompute()

logger = logging.getLogger(__name__)


class Learning(NamedTuple):
    """One stage, its network loaded."""

    trainables: Trainables
    loss: nn.Cell
    recipe: Recipe


def learn_unet(engine: DiffusionEngine, options: TrainingOptions, amp: str) -> Learning:
    """The denoising network, or a LoRA of it."""
    run = options.run
    trainables = choose_trainables(engine.network, run.temporal_only, options.lora, options.environment.seed)
    network = engine.network.load()
    if amp == "O2":
        set_compute_dtype(network, ms.float16)
    if run.recompute:
        recompute_blocks(network)
    _log(trainables, amp)
    dropout = ConditioningDropout(**pick(options.dropout)).check()
    objective = Objective(engine.denoiser.scaling, sigma_distribution(options), dropout)
    return Learning(trainables, DiffusionLoss(network), DiffusionRecipe(_encoders(engine, options), objective))


def learn_autoencoder(engine: DiffusionEngine, options: TrainingOptions, amp: str) -> Learning:
    """The image autoencoder: that of the conditioner, and the temporal decoder's spatial layers, which copy it."""
    conditioner = engine.conditioner.part("image autoencoder", in_image_autoencoder)
    trainables = train_autoencoder(conditioner, engine.first_stage)
    autoencoder = image_autoencoder(conditioner.load())
    loss = AutoencoderLoss(
        autoencoder, _reconstruction(options), options.autoencoder.kl_weight, options.autoencoder.anchor_weight
    )
    _log(trainables, amp)
    return Learning(trainables, loss, AutoencoderRecipe(autoencoder.post_quant_conv.weight.shape[1]))


def learn_decoder(engine: DiffusionEngine, options: TrainingOptions, amp: str) -> Learning:
    """The temporal decoder."""
    engine.first_stage.offload = False
    trainables = train_decoder(engine.first_stage, options.run.temporal_only)
    loss = DecoderLoss(engine.first_stage.load(), _reconstruction(options))
    _log(trainables, amp)
    return Learning(trainables, loss, DecoderRecipe(_encoders(engine, options), options.autoencoder.latent_noise))


def sigma_distribution(options: TrainingOptions) -> LogNormal:
    """Of the diffusion's noise levels."""
    return LogNormal(options.sigma.P_mean, options.sigma.P_std, "--train.sigma")


def cond_aug_distribution(options: TrainingOptions) -> LogNormal:
    """Of the noise in the conditioning frame."""
    return LogNormal(options.cond_aug.mean, options.cond_aug.std, "--train.cond_aug")


def _reconstruction(options: TrainingOptions) -> ReconstructionLoss:
    weights = options.autoencoder
    return ReconstructionLoss(weights.edge_weight, weights.colour_weight, weights.rms_weight)


LEARNING: Dict[str, Callable[[DiffusionEngine, TrainingOptions, str], Learning]] = {
    "unet": learn_unet,
    "autoencoder": learn_autoencoder,
    "decoder": learn_decoder,
}


def _encoders(engine: DiffusionEngine, options: TrainingOptions) -> FrozenEncoders:
    cond_aug = cond_aug_distribution(options)
    return FrozenEncoders(engine.conditioner, engine.scale_factor, cond_aug, options.run.encode_chunk_size)


def _log(trainables: Trainables, amp: str) -> None:
    count = sum(parameter.size for parameter in trainables.parameters.values())
    logger.info("training %d tensors, %.4g million parameters, %s", len(trainables.parameters), count / 1e6, amp)
