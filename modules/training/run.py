"""From the options of train.py to a trainer."""

import logging
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Tuple, Union

import mindspore as ms
import numpy as np

from data.dataloader import make_dataloader
from data.video_dataset import VideoDataset
from gm.config.factory import load_config, load_model
from gm.errors import UserError
from gm.model import DiffusionEngine
from gm.networks.precision import amp_dtype
from gm.training.callbacks import Callback, ConfigFile, LogLines, MetricsFile, ProgressLine, TensorBoardLog, WandbLog
from gm.training.checkpoints import CheckpointFolder
from gm.training.distributed import Communicator
from gm.training.objective import ConditioningDropout
from gm.training.optim import AdamW, AdamWOptions, LearningRate, WeightAverage
from gm.training.train_step import LossScale, NoLossScale, TrainStep
from gm.training.trainer import Batch, Batches, Plan, Trainer
from gm.weights.checkpoint import open_checkpoint
from gm.weights.parameters import FullModelWriter
from gm.weights.safetensors_file import save_safetensors
from modules.training.fingerprint import run_fingerprint
from modules.training.latent_cache import CachedDataset, LatentCache
from modules.training.options import TrainingOptions, pick
from modules.training.stages import TrainingStage, build_stage
from modules.training.validation import ValidationClips, ValidationVideos

INITIAL_WEIGHTS = "initial.safetensors"
TENSORBOARD = "tensorboard"
STEPS_TO_FUSE = 300  # from which on building fused kernels, a minute, pays by far

logger = logging.getLogger(__name__)


@contextmanager
def training_run(
    options: TrainingOptions, svd_config: Path, communicator: Communicator, config: Mapping[str, Any]
) -> Iterator[Trainer]:
    """A trainer for the options, resumed if they ask for it; inside the block no other run may use its folder.

    Args:
        svd_config: YAML file of the model.
        communicator: the processes that train together.
        config: all options, resolved, to be saved beside the checkpoints.

    Raises:
        UserError: options, data or weights that cannot be used.
    """
    checkpoints = CheckpointFolder(Path(options.run.output_dir), options.run.keep)
    engine: DiffusionEngine = load_model(svd_config, flag="--svd_config")
    with checkpoints.locked() if communicator.rank == 0 else nullcontext():
        resume = checkpoints.find(options.run.resume or "")
        holdout = options.validation.holdout if options.validation.every else 0
        dataset_args = {**options.dataset, "seed": options.environment.seed, "holdout": holdout}
        VideoDataset(**dataset_args)  # refuses what cannot be used, before anything is encoded
        ConditioningDropout(**pick(options.dropout)).check()
        callbacks = build_callbacks(options, config, dataset_args) if communicator.rank == 0 else ()
        engine.backend = {"fuse_kernels": options.environment.fuse_kernels}
        weights = attach_weights(engine, options, communicator)
        dataset = open_dataset(options, dataset_args, engine, communicator)
        amp = amp_level(options)
        stage = build_stage(engine, options, amp)
        batches, steps = plan_batches(options, dataset, communicator)
        model = load_config(svd_config, flag="--svd_config")["model"]
        trainer = Trainer(
            build_step(stage, options, amp, communicator, steps),
            stage.parameters,
            engine,
            stage.prepare,
            options.environment.seed,
            batches,
            LearningRate(**pick(options.scheduler), total_steps=steps),
            Plan(steps, options.run.checkpoint_every, options.validation.every, options.run.max_nonfinite),
            checkpoints,
            stage.writer,
            run_fingerprint(options, model, weights, dataset.rows, communicator.world_size, amp),
            callbacks,
        )
        if resume is not None:
            trainer.restore(resume)
        yield trainer


def attach_weights(engine: DiffusionEngine, options: TrainingOptions, communicator: Communicator) -> Path:
    """Names the weights that training starts from, written first where there are no pretrained ones.

    The encoders and the decoder are loaded when they are used and released then; the UNet stays.
    """
    path = Path(options.run.pretrained) if options.run.pretrained else None
    if path is None:
        path = Path(options.run.output_dir) / INITIAL_WEIGHTS
        logger.warning("no --train.pretrained: all weights are random, those of the encoders too")
        if communicator.rank == 0:
            write_initial_weights(engine, path, options.environment.seed)
        communicator.wait()
    require_whole_model(path)
    engine.attach(path, ms.float32, offload=True)
    engine.network.offload = False
    return path


def require_whole_model(path: Path) -> None:
    """Tells what to name instead of a run's folder or a LoRA as `--train.pretrained`.

    Raises:
        UserError: it is one of these.
    """
    flag = "--train.pretrained"
    if path.is_dir():
        found = sorted(path.glob(f"**/{FullModelWriter.file_name}"))
        named = f"name the file in it, {found[-1]}" if found else "name a file of weights"
        raise UserError(f"{flag}: {path} is a folder; {named}")
    with open_checkpoint(path) as source:
        if any("lora" in name for name in source.info):
            raise UserError(
                f"{flag}: {path} is a LoRA; name the model that it belongs to, and the LoRA as --train.lora.pretrained"
            )


def write_initial_weights(engine: DiffusionEngine, path: Path, seed: int) -> None:
    """Writes the whole model's initial values as a checkpoint under the published names.

    The last layer of every residual branch is zero, norms are the identity, all else is uniform in ±1/√fan-in. The same
    seed gives the same file.
    """
    tensors: Dict[str, np.ndarray] = {}
    for stage in engine.parts:
        ms.set_seed(seed)
        for name, parameter in stage.build().parameters_and_names():
            tensors[stage.prefix + name] = parameter.asnumpy()
    save_safetensors(path, tensors, {"initialised_with_seed": str(seed)})


def open_dataset(
    options: TrainingOptions, dataset_args: Dict[str, Any], engine: DiffusionEngine, communicator: Communicator
) -> Union[VideoDataset, CachedDataset]:
    """The videos, or the cache of their encoded clips, completed first."""
    cache_options = pick(options.latent_cache)
    folder = cache_options.pop("folder")
    if not folder:
        return VideoDataset(**dataset_args)
    cache = LatentCache(folder, dataset_args, engine, options.cond_aug.distribution(), **cache_options)
    cache.build(options.run.encode_chunk_size, communicator.rank, communicator.world_size)
    communicator.wait()
    return cache.open()


def plan_batches(options: TrainingOptions, dataset: Any, communicator: Communicator) -> Tuple[Batches, int]:
    """The batches from any number on, and how many updates they make."""
    batch_size, accumulation = options.dataloader.batch_size, options.settings.gradient_accumulation_steps
    loader = partial(
        make_dataloader,
        dataset,
        **pick(options.dataloader),
        rank=communicator.rank,
        world_size=communicator.world_size,
        seed=options.environment.seed,
    )
    per_epoch = loader().batches_per_epoch
    steps = options.run.epochs * per_epoch // accumulation
    if steps == 0:
        raise UserError(
            f"--train.settings.gradient_accumulation_steps={accumulation}: {options.run.epochs} epoch(s) of "
            f"{per_epoch} batches are not enough for one update; lower it or raise --train.epochs"
        )
    steps = min(steps, options.run.max_steps or steps)

    def open_batches(number: int) -> Iterator[Batch]:
        epoch, first = divmod(number, per_epoch)
        last = (steps * accumulation - 1) // per_epoch
        return iter(loader(epoch=epoch, start_batch=first, epochs=last + 1 - epoch))

    return Batches(open_batches, per_epoch, batch_size), steps


def build_step(
    stage: TrainingStage, options: TrainingOptions, amp: str, communicator: Communicator, steps: int
) -> TrainStep:
    """The optimizer step of a run of so many steps."""
    parameters = list(stage.parameters.values())
    settings, optimizer, fuse = options.settings, options.optimizer, options.environment.fuse_kernels
    if fuse is None:  # the same for a run and for its resumption, because the losses' last digits depend on it
        fuse = options.run.stage == "unet" and steps >= STEPS_TO_FUSE
    return TrainStep(
        stage.loss,
        parameters,
        AdamW(parameters, AdamWOptions(tuple(optimizer.betas), optimizer.eps, optimizer.weight_decay)),
        WeightAverage(parameters, options.run.ema_decay) if options.run.ema_decay else None,
        LossScale(**pick(options.loss_scale)) if amp == "O2" else NoLossScale(),
        communicator,
        settings.gradient_accumulation_steps,
        settings.clip_norm if settings.clip_grad else None,
        settings.drop_overflow_update,
        fuse,
    )


def amp_level(options: TrainingOptions) -> str:
    """O0, O2 or bf16. The autoencoder is always trained in fp32: in fp16 its activations overflow.

    Raises:
        UserError: bf16 where there are no operators for it.
    """
    level = options.run.amp_level
    if level == "bf16" and ms.get_context("device_target") == "CPU":
        raise UserError("--train.amp_level=bf16: MindSpore has no bf16 operators for a CPU; leave it at auto")
    if level == "bf16":
        return level
    half = options.run.stage == "unet" and amp_dtype(level) == ms.float16
    return "O2" if half else "O0"


def build_callbacks(
    options: TrainingOptions, config: Mapping[str, Any], dataset_args: Mapping[str, Any]
) -> List[Callback]:
    """Those of rank 0."""
    log = TensorBoardLog(Path(options.run.output_dir) / TENSORBOARD)
    wandb = WandbLog(options.run.wandb, config) if options.run.wandb else None
    callbacks = [ConfigFile(config), ProgressLine(), LogLines(options.run.log_every), MetricsFile(), log]
    callbacks += [wandb] if wandb else []
    validation = pick(options.validation)
    if validation.pop("every") and validation["clips"]:
        videos = VideoDataset(**dataset_args, held_out=True)
        if not len(videos):
            logger.warning("no video is held out: validation is on training clips, and shows what is learnt by heart")
            videos = VideoDataset(**dataset_args)
        callbacks.append(ValidationClips(videos, options.validation, options.environment.seed, log, wandb))
    if validation["images"]:
        clips = options.dataset
        size = {"num_frames": clips["frames"], "height": clips["height"], "width": clips["width"]}
        callbacks.append(ValidationVideos(**size, **validation, log=log, wandb=wandb))
    return callbacks
