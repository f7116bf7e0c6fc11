"""What each stage of training trains, with which loss, from which inputs."""

import logging
from typing import Callable, Dict, NamedTuple

import mindspore as ms
from mindspore import nn

from gm.engine import DiffusionEngine
from gm.noise_levels import LogNormal
from gm.precision import set_compute_dtype
from gm.training.autoencoder_loss import AutoencoderLoss, DecoderLoss, ReconstructionLoss
from gm.training.conditioning_dropout import ConditioningDropout
from gm.training.frozen_encoders import FrozenEncoders
from gm.training.loss import DiffusionLoss
from gm.training.objective import Objective
from gm.training.recipes import AutoencoderRecipe, DecoderRecipe, DiffusionRecipe, Recipe
from modules.encoders import image_autoencoder, in_image_autoencoder
from modules.recompute import recompute_blocks
from modules.train_options import TrainingOptions, pick
from modules.trainables import Trainables, choose_trainables, train_autoencoder, train_decoder

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
