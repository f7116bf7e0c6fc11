"""The options of train.py, as in the reference toolkit's svd_train.yaml and beyond."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Optional, Tuple

from data.motion import MAX_BUCKET
from gm.errors import UserError
from modules.frame_size import check_frame_size


@dataclass
class SigmaOptions:
    """The noise levels that are trained: ln σ ~ N(P_mean, P_std²), one σ per clip.

    Args:
        P_mean: 1.0 for 576x1024, 0.7 for 320x576; lower for smaller frames.
        P_std: 1.6.
    """

    P_mean: float = 1.0
    P_std: float = 1.6


@dataclass
class CondAugOptions:
    """The noise of the conditioning frame: ln cond_aug ~ N(mean, std²), one value per clip.

    Args:
        mean: of the logarithm.
        std: of the logarithm.
    """

    mean: float = -3.0
    std: float = 0.5


@dataclass
class DropoutOptions:
    """How often a clip is trained without its picture, for classifier-free guidance.

    Args:
        both: probability that CLIP token and latent are dropped.
        token: that only the CLIP token is.
        latent: that only the latent is.
    """

    both: float = 0.1
    token: float = 0.05
    latent: float = 0.05


@dataclass
class AutoencoderOptions:
    """The loss of the stages autoencoder and decoder.

    Args:
        edge_weight: of the differences between neighbouring pixels, and frames, beside the pixels'.
        colour_weight: of the mean colours of blocks of 8x8 pixels.
        rms_weight: of a clip's root mean square error, beside the mean absolute one: large errors count for more.
        anchor_weight: of the distance between the latent's first three channels and the mean red, green and blue of
            their 8x8 pixels, so that no colour is left out (stage autoencoder).
        kl_weight: of the latent's divergence from a unit Gaussian (stage autoencoder).
        latent_noise: standard deviation of the noise added to scaled latents (stage decoder): it learns to forgive.
    """

    edge_weight: float = 0.5
    colour_weight: float = 1.0
    rms_weight: float = 0.0
    anchor_weight: float = 0.0
    kl_weight: float = 1e-3
    latent_noise: float = 0.1

    def check(self) -> None:
        """Raises a UserError for a number out of its range."""
        for name, value in vars(self).items():
            if not value >= 0:
                raise UserError(f"--train.autoencoder.{name} is {value:g}; it is 0 or more")


@dataclass
class LoRAOptions:
    """Low-rank adaptation in place of training the layers themselves.

    Args:
        rank: 0 trains no LoRA but the layers.
        alpha: the branch counts alpha / rank; by default once.
        targets: temporal, spatial, all (attention layers), or a regular expression for names of linear layers.
    """

    rank: int = 0
    alpha: Optional[float] = None
    targets: str = "temporal"

@dataclass
class EnvironmentOptions:
    """Where and how the program runs.

    Args:
        mode: of MindSpore: 0 graph (compiles first, then fastest), 1 PyNative.
        seed: of all random numbers, 0 or more: the same seed gives the same run.
        device_target: auto takes an Ascend card if there is one, else the CPU.
        distributed: several processes train together; start them with msrun.
        shard_optimizer: each Ascend card holds a share of the optimizer's state, with distributed.
        fuse_kernels: on CPU in graph mode, compile chains of small operators to one kernel each, which takes a minute
            and a quarter off a step of the UNet. By default for runs of 300 updates or more of the stage unet; it needs
            g++.
        debug: log more.
        enable_modelarts: the reference toolkit's; False only.
    """

    mode: Literal[0, 1] = 0
    seed: int = 42
    device_target: Literal["auto", "CPU", "Ascend"] = "auto"
    distributed: bool = False
    shard_optimizer: bool = False
    fuse_kernels: Optional[bool] = None
    debug: bool = False
    enable_modelarts: Literal[False] = False


@dataclass
class RunOptions:
    """What is trained from what, for how long.

    Args:
        stage: what is trained: the UNet; the image autoencoder from scratch, whose results the temporal decoder starts
            from; or the temporal decoder.
        epochs: passes over the videos; each gives one clip of every video.
        max_steps: updates after which to stop even if epochs are left.
        temporal_only: train the temporal layers only; False trains the whole network of the stage.
        pretrained: the weights to start from: svd*.safetensors, the reference toolkit's .ckpt, or a file that this
            program wrote. Empty starts from random weights.
        output_dir: folder of the run: checkpoints, log, curves, validation videos.
        resume: auto goes on with the newest checkpoint in output_dir, if there is one; or the path of a checkpoint.
            Empty starts anew.
        checkpoint_every: steps between two checkpoints.
        keep: how many of the newest checkpoints stay; 0 keeps all.
        amp_level: O0 trains in fp32; O2 computes in fp16 with fp32 weights, norms and loss; auto is O2 on Ascend and O0
            on CPU.
        recompute: keep less for the backward pass and compute it again: far less memory, about a third more time.
        ema_decay: of the average of the weights, which is what is saved for use and validated with; 0 for none.
        max_nonfinite: stop after so many steps in a row without a finite loss and gradient.
        encode_chunk_size: frames that the autoencoder encodes together.
        log_every: steps between two lines in the log.
        sink_size: the reference toolkit's; -1 only.
    """

    stage: Literal["unet", "autoencoder", "decoder"] = "unet"
    epochs: int = 100
    max_steps: Optional[int] = None
    temporal_only: bool = True
    pretrained: Optional[str] = None
    output_dir: str = "output/train"
    resume: Optional[str] = None
    checkpoint_every: int = 500
    keep: int = 3
    amp_level: Literal["auto", "O0", "O2"] = "auto"
    recompute: bool = False
    ema_decay: float = 0.9999
    max_nonfinite: int = 20
    encode_chunk_size: int = 4
    log_every: int = 10
    sink_size: Literal[-1] = -1

    def check(self) -> None:
        """Raises a UserError for a number out of its range."""
        for name in ("epochs", "checkpoint_every", "max_nonfinite", "encode_chunk_size", "log_every"):
            _at_least(f"--train.{name}", getattr(self, name), 1)
        _at_least("--train.keep", self.keep, 0)
        if self.max_steps is not None:
            _at_least("--train.max_steps", self.max_steps, 1)


@dataclass
class DataloaderOptions:
    """Batches.

    Args:
        batch_size: clips in a batch, on each device.
        shuffle: a new order each epoch.
        drop_remainder: leave out an epoch's last, smaller batch.
        num_workers: processes that read videos; 0 reads in this one.
    """

    batch_size: int = 1
    shuffle: bool = True
    drop_remainder: bool = True
    num_workers: int = 0


@dataclass
class SchedulerOptions:
    """The learning rate.

    Args:
        name: constant, or falling from lr to end_lr by cosine_decay or polynomial_decay.
        lr: the highest.
        end_lr: the last one of the two that fall.
        warmup_steps: updates in which it rises to lr.
        power: of polynomial_decay; 1 is a straight line.
    """

    name: Literal["constant", "cosine_decay", "polynomial_decay"] = "constant"
    lr: float = 1e-5
    end_lr: float = 1e-7
    warmup_steps: int = 0
    power: float = 1.0


@dataclass
class OptimizerOptions:
    """AdamW, as PyTorch computes it.

    Args:
        name: adamw.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, of all trained tensors.
    """

    name: Literal["adamw"] = "adamw"
    betas: Tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01


@dataclass
class SettingsOptions:
    """How an update is made.

    Args:
        drop_overflow_update: after an fp16 overflow go on with the next batches; False repeats the same ones with the
            lower loss scale.
        gradient_accumulation_steps: batches in one update.
        clip_grad: limit the gradients.
        clip_norm: to this norm of all of them together.
    """

    drop_overflow_update: bool = False
    gradient_accumulation_steps: int = 1
    clip_grad: bool = True
    clip_norm: float = 1.0

    def check(self) -> None:
        """Raises a UserError for a number out of its range."""
        _at_least("--train.settings.gradient_accumulation_steps", self.gradient_accumulation_steps, 1)
        if not self.clip_norm > 0:
            raise UserError(f"--train.settings.clip_norm is {self.clip_norm:g}; it is above 0")


@dataclass
class LatentCacheOptions:
    """Clips encoded once, so that neither encoder is in memory while training.

    Args:
        folder: for the encoded clips; made if it is not there. Empty encodes while training.
        windows: clips kept of each video.
        draws: of the conditioning frame's noise kept for each clip.
    """

    folder: Optional[str] = None
    windows: int = 1
    draws: int = 8


@dataclass
class ValidationOptions:
    """Videos sampled while training, always from the same images and seeds.

    Args:
        every: steps between; 0 for none.
        images: an image, or a folder of them.
        seeds: of the noise; each image is animated with each.
        fps: frames per second.
        motion_bucket_id: how much motion, 0 to 255.
        noise_aug_strength: noise added to the image.
        sampling_steps: 0 takes the model's.
        decode_chunk_size: frames decoded at a time; 0 decodes all at once.
    """

    every: int = 0
    images: Optional[str] = None
    seeds: List[int] = field(default_factory=lambda: [42])
    fps: int = 7
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    sampling_steps: int = 0
    decode_chunk_size: int = 0

    def check(self) -> None:
        """Raises a UserError unless the options go together."""
        _at_least("--train.validation.every", self.every, 0)
        if bool(self.every) != bool(self.images):
            given, lacking = ("every", "images") if self.every else ("images", "every")
            raise UserError(f"--train.validation.{given} needs --train.validation.{lacking}")
        for name, lowest in (("fps", 1), ("motion_bucket_id", 0), ("sampling_steps", 0), ("decode_chunk_size", 0)):
            _at_least(f"--train.validation.{name}", getattr(self, name), lowest)
        for seed in self.seeds:
            _at_least("--train.validation.seeds", seed, 0)
        if self.motion_bucket_id > MAX_BUCKET:
            raise UserError(f"--train.validation.motion_bucket_id is {self.motion_bucket_id}; it is 0 to {MAX_BUCKET}")
        if not 0 <= self.noise_aug_strength < math.inf:
            raise UserError(f"--train.validation.noise_aug_strength is {self.noise_aug_strength}; it is 0 or more")


@dataclass
class LossScaleOptions:
    """The loss scale of fp16 training (O2).

    Args:
        loss_scale_value: to start with.
        scale_factor: what it is divided by after an overflow, and multiplied by after a window without.
        scale_window: updates in a window.
    """

    loss_scale_value: float = 65536.0
    scale_factor: float = 2.0
    scale_window: int = 1000


@dataclass
class TrainingOptions:
    """All of them, with the data set's arguments."""

    environment: EnvironmentOptions
    run: RunOptions
    dataset: Dict[str, Any]
    dataloader: DataloaderOptions
    scheduler: SchedulerOptions
    optimizer: OptimizerOptions
    settings: SettingsOptions
    sigma: SigmaOptions
    cond_aug: CondAugOptions
    dropout: DropoutOptions
    autoencoder: AutoencoderOptions
    lora: LoRAOptions
    latent_cache: LatentCacheOptions
    validation: ValidationOptions
    loss_scale: LossScaleOptions

    def check(self) -> None:
        """Raises a UserError for what can be told from the options alone."""
        if self.environment.seed < 0:
            raise UserError(f"--environment.seed is {self.environment.seed}; it is 0 or more")
        for options in (self.run, self.settings, self.autoencoder, self.validation):
            options.check()
        if not self.run.pretrained and (self.run.temporal_only or self.lora.rank):
            raise UserError(
                "--train.pretrained is empty: random layers would stay frozen; name a checkpoint, or train all with "
                "--train.temporal_only=False and without a LoRA"
            )
        self._check_stage()
        for name in ("height", "width"):
            check_frame_size(f"--train.dataset.init_args.{name}", self.dataset[name])

    def _check_stage(self) -> None:
        """Raises a UserError for options that the stage has no use for."""
        if self.run.stage == "unet":
            return
        useless = {
            "--train.lora.rank": self.lora.rank,
            "--train.latent_cache.folder": self.latent_cache.folder,
            "--train.validation.every": self.validation.every,
            "--train.temporal_only": self.run.temporal_only and self.run.stage == "autoencoder",
            "--train.recompute": self.run.recompute,
            "--train.amp_level=O2": self.run.amp_level == "O2",
        }
        for flag, value in useless.items():
            if value:
                raise UserError(f"{flag} is not for --train.stage={self.run.stage}; leave it off")


def _at_least(flag: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise UserError(f"{flag} is {value}; it is {lowest} or more")


def pick(options: Any) -> Dict[str, Any]:
    """A group of options as arguments."""
    return dict(vars(options))
