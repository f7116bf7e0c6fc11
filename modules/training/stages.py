"""What each stage of training trains, with which loss, from which inputs, and how it is saved."""

import logging
import re
from typing import Callable, Dict, Mapping, NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from gm.errors import UserError
from gm.model import DiffusionEngine
from gm.networks.lora import FLAG as LORA
from gm.networks.lora import LoRADropout, add_lora, lora_parameters
from gm.networks.precision import set_compute_dtype
from gm.training.autoencoder_loss import AutoencoderLoss, DecoderLoss, ReconstructionLoss
from gm.training.objective import ConditioningDropout, DiffusionLoss, LogNormal, Objective
from gm.training.trainer import Prepare
from gm.weights.checkpoint import open_checkpoint
from gm.weights.lora_file import A, B, LoRAWriter, read_lora
from gm.weights.model_part import ModelPart
from gm.weights.parameters import FullModelWriter, WeightsWriter, set_parameter
from modules.conditioning import image_autoencoder, in_image_autoencoder
from modules.training.inputs import AutoencoderInputs, DecoderInputs, FrozenEncoders, UNetInputs
from modules.training.options import LoRAOptions, TrainingOptions, pick
from modules.video_unet import VideoUNet, is_temporal

COMPUTE_TYPES = {"O2": ms.float16, "bf16": ms.bfloat16}
EXAMPLE_NAME = "input_blocks.1.1.time_stack.0.attn1.to_q.weight"

logger = logging.getLogger(__name__)


class TrainingStage(NamedTuple):
    """One stage, its network loaded."""

    parameters: Dict[str, Parameter]  # what is trained, by its name in the network
    writer: WeightsWriter  # of what is trained, for users
    loss: nn.Cell
    prepare: Prepare  # from batches to the loss's inputs


def unet_stage(engine: DiffusionEngine, options: TrainingOptions, amp: str) -> TrainingStage:
    """The denoising network, or a LoRA of it."""
    run, lora, stage = options.run, options.lora, engine.network
    stage.dtype = ms.float16 if amp == "O2" else ms.float32  # of what is frozen
    writer: WeightsWriter
    lora_dropout = LoRADropout(lora.dropout, options.dataloader.batch_size) if lora.dropout else None
    if lora.rank:
        parameters = unfreeze_lora(stage, run.temporal_only, lora, options.environment.seed, lora_dropout)
        if lora.pretrained:
            start_from_lora(stage, parameters, lora)
        writer = LoRAWriter(float(lora.rank) if lora.alpha is None else lora.alpha, lora.targets, stage.prefix)
    else:
        parameters = unfreeze(stage, is_temporal if run.temporal_only else None, run.layers)
        writer = FullModelWriter(stage.path, stage.prefix)
    network = stage.load()
    if amp in COMPUTE_TYPES:
        set_compute_dtype(network, COMPUTE_TYPES[amp])
    if run.recompute:
        recompute_blocks(network)
    dropout = ConditioningDropout(**pick(options.dropout))
    sigma = LogNormal(options.sigma.P_mean, options.sigma.P_std)
    objective = Objective(engine.denoiser.scaling, sigma, dropout)
    inputs = UNetInputs(_encoders(engine, options), objective, lora_dropout)
    return TrainingStage(parameters, writer, DiffusionLoss(network), inputs)


def autoencoder_stage(engine: DiffusionEngine, options: TrainingOptions, amp: str) -> TrainingStage:
    """The image autoencoder: that of the conditioner, all but its `post_quant_conv`, which stays the identity.

    What the temporal decoder has under the same name and in the same shape takes its values: it then starts as the
    image decoder.
    """
    conditioner, first_stage = engine.conditioner.subset("image autoencoder", in_image_autoencoder), engine.first_stage
    parameters = unfreeze(conditioner, lambda name: in_image_autoencoder(name) and ".post_quant_conv." not in name)
    twins = {first_stage.prefix + name.partition(".encoder.")[2]: name for name in parameters}
    shapes = first_stage.shapes()
    same = {twin: name for twin, name in twins.items() if shapes.get(twin) == parameters[name].shape}
    copies = {twin: conditioner.prefix + name for twin, name in same.items()}
    autoencoder = image_autoencoder(conditioner.load())
    kl_weight, anchor_weight = options.autoencoder.kl_weight, options.autoencoder.anchor_weight
    return TrainingStage(
        parameters,
        FullModelWriter(conditioner.path, conditioner.prefix, copies),
        AutoencoderLoss(autoencoder, _reconstruction(options), kl_weight, anchor_weight),
        AutoencoderInputs(autoencoder.post_quant_conv.weight.shape[1]),
    )


def decoder_stage(engine: DiffusionEngine, options: TrainingOptions, amp: str) -> TrainingStage:
    """The temporal decoder, or its temporal layers only."""
    stage = engine.first_stage
    stage.offload = False
    every = not options.run.temporal_only
    return TrainingStage(
        unfreeze(stage, lambda name: name.startswith("decoder.") and (every or is_temporal(name)), options.run.layers),
        FullModelWriter(stage.path, stage.prefix),
        DecoderLoss(stage.load(), _reconstruction(options)),
        DecoderInputs(_encoders(engine, options), options.autoencoder.latent_noise),
    )


STAGES: Dict[str, Callable[[DiffusionEngine, TrainingOptions, str], TrainingStage]] = {
    "unet": unet_stage,
    "autoencoder": autoencoder_stage,
    "decoder": decoder_stage,
}


def build_stage(engine: DiffusionEngine, options: TrainingOptions, amp: str) -> TrainingStage:
    """The stage that the options choose; everything that it does not train stays frozen on the memory map of its file.

    Args:
        engine: attached to the weights that training starts from.
        amp: O0, or for the UNet O2 (fp16) or bf16.

    Raises:
        UserError: options that cannot be used, or weights that cannot be read.
    """
    stage = STAGES[options.run.stage](engine, options, amp)
    count = sum(parameter.size for parameter in stage.parameters.values())
    logger.info("training %d tensors, %.4g million parameters, %s", len(stage.parameters), count / 1e6, amp)
    return stage


def unfreeze_lora(
    stage: ModelPart, temporal_only: bool, lora: LoRAOptions, seed: int, dropout: Optional[LoRADropout] = None
) -> Dict[str, Parameter]:
    """Loads the UNet and gives it a LoRA, whose parameters are returned by name.

    Args:
        stage: of the UNet, attached to its checkpoint.
        temporal_only: refuses a LoRA for spatial layers.
        seed: of the LoRA's start.
        dropout: of what reaches it.

    Raises:
        UserError: LoRA options that cannot be used.
    """
    net = stage.load()
    names = add_lora(net, lora.rank, lora.alpha, lora.targets, seed, dropout)
    spatial = [name for name in names if not is_temporal(name)]
    if temporal_only and spatial:
        raise UserError(
            f"{LORA}targets={lora.targets} has spatial layers such as {spatial[0]}, and --train.temporal_only=True "
            "wants temporal ones only; set it to False"
        )
    return lora_parameters(net)


def start_from_lora(stage: ModelPart, parameters: Mapping[str, Parameter], lora: LoRAOptions) -> None:
    """Gives A and B the values of a file.

    Raises:
        UserError: the file cannot be read, or is of other layers, another rank or alpha.
    """
    alpha = float(lora.rank) if lora.alpha is None else lora.alpha
    layers = read_lora(lora.pretrained).layers
    values = {}
    for name, layer in layers.items():
        stem = name[len(stage.prefix) :]
        values[stem + A], values[stem + B] = layer.a, layer.b
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if {name: value.shape for name, value in values.items()} != shapes or {v.alpha for v in layers.values()} != {alpha}:
        kinds = " or ".join(sorted({f"rank {layer.rank} and alpha {layer.alpha:g}" for layer in layers.values()}))
        raise UserError(
            f"{LORA}pretrained: {lora.pretrained} has {len(layers)} layers of {kinds}; this run's LoRA has "
            f"{len(shapes) // 2} of rank {lora.rank} and alpha {alpha:g}; make {LORA}rank, {LORA}alpha and "
            f"{LORA}targets the file's"
        )
    for name, parameter in parameters.items():
        set_parameter(parameter, values[name])


def unfreeze(
    stage: ModelPart, trained: Optional[Callable[[str], bool]] = None, pattern: Optional[str] = None
) -> Dict[str, Parameter]:
    """Loads a stage and returns the parameters that are trained, by name; the others are frozen.

    The trained ones get memory of their own: they must not share the memory map of a read-only file.

    Args:
        trained: which may be trained; by default all.
        pattern: a regular expression searched for in the names of these, which chooses among them.

    Raises:
        UserError: no regular expression, or one that chooses nothing.
    """
    try:
        chosen = re.compile(pattern or "")
    except re.error as error:
        raise UserError(f"--train.layers: {pattern!r} is no regular expression ({error})") from error
    parameters = freeze(stage.load(), lambda name: (trained is None or trained(name)) and bool(chosen.search(name)))
    if not parameters:
        raise UserError(f"--train.layers: {pattern!r} is in no name of what may be trained, such as {EXAMPLE_NAME}")
    with open_checkpoint(stage.path) as source:
        for name, parameter in parameters.items():
            set_parameter(parameter, np.array(source.read(stage.prefix + name), np.float32))
            source.release(stage.prefix + name)
    return parameters


def freeze(net: nn.Cell, trained: Optional[Callable[[str], bool]] = None) -> Dict[str, Parameter]:
    """Freezes all parameters but the trained ones (None: all), which are returned by their name in the network."""
    chosen = {}
    for name, parameter in net.parameters_and_names():
        parameter.name, parameter.requires_grad = name, trained is None or trained(name)
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


def recompute_blocks(unet: VideoUNet) -> None:
    """Makes every residual block and transformer recompute its activations: less memory, about a third more time."""
    for stage in [*unet.input_blocks, unet.middle_block, *unet.output_blocks]:
        for block in stage:
            block.recompute()


def _reconstruction(options: TrainingOptions) -> ReconstructionLoss:
    weights = options.autoencoder
    return ReconstructionLoss(weights.edge_weight, weights.colour_weight, weights.rms_weight)


def _encoders(engine: DiffusionEngine, options: TrainingOptions) -> FrozenEncoders:
    cond_aug = LogNormal(*options.cond_aug.distribution())
    return FrozenEncoders(engine.conditioner, engine.scale_factor, cond_aug, options.run.encode_chunk_size)
