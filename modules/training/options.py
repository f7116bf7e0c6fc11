"""The options of train.py, as in the reference toolkit's svd_train.yaml and beyond, each stated once."""

from dataclasses import dataclass, field, fields, replace
from math import log
from typing import Annotated, Any, Dict, List, Literal, Optional, Tuple, Type

from gm.config.values import OptionError, Options, Range, expect, flags_below
from gm.errors import UserError
from gm.files import FilePath
from gm.options import Seed, Size
from modules.options import MAX_FRAMES, ClipOptions, Frames, Share

Count = Annotated[int, Range(1, 10**9)]  # of steps
CountOrNone = Annotated[int, Range(0, 10**9)]  # 0 for none
Log = Annotated[float, Range(-50, 50)]  # of a noise level
Deviation = Annotated[float, Range(0, 50)]
Weight = Annotated[float, Range(0, 1e6)]  # of a part of a loss
Positive = Annotated[float, Range(1e-30, 1e6)]
BelowOne = Annotated[float, Range(0, 1 - 1e-12)]
# Learning rates where --train.scheduler.lr is left out. A LoRA starts at zero and is the sum of few directions, so it
# takes ten times the rate of the layers themselves, which already know a lot (diffusers' and kohya's scripts: 1e-4 for
# a LoRA); SVD's temporal layers alone take what its public finetuning scripts use, 1e-5, and the whole network half.
LORA_LR, TEMPORAL_LR, WHOLE_LR = 1e-4, 1e-5, 5e-6
DATASET = {"frames": Frames, "step": Annotated[int, Range(1, 10**6)], "height": Size, "width": Size}


@dataclass
class EnvironmentOptions(Options):
    """Where and how the program runs."""

    mode: Literal[0, 1] = 0
    """of MindSpore: 0 graph (compiles first, then fastest), 1 PyNative"""
    seed: Seed = 42
    """of all random numbers: the same seed gives the same run"""
    device_target: Literal["auto", "CPU", "Ascend"] = "auto"
    """auto takes an Ascend card if there is one, else the CPU"""
    distributed: bool = False
    """several processes train together; start them with msrun"""
    shard_optimizer: bool = False
    """each Ascend card holds a share of the optimizer's state, with distributed"""
    fuse_kernels: Optional[bool] = None
    """on CPU in graph mode, compile chains of small operators to one kernel each, which takes a minute and a quarter
    off a step of the UNet; by default for runs of 300 updates or more of the stage unet; it needs g++"""
    debug: bool = False
    """log more"""
    enable_modelarts: Literal[False] = False
    """the reference toolkit's; False only"""


@dataclass
class RunOptions(Options):
    """What is trained from what, for how long."""

    stage: Literal["unet", "autoencoder", "decoder"] = "unet"
    """what is trained: the UNet; the image autoencoder from scratch, whose results the temporal decoder starts from; or
    the temporal decoder"""
    epochs: Count = 100
    """passes over the videos; each gives one clip of every video"""
    max_steps: Optional[Count] = None
    """updates after which to stop even if epochs are left"""
    temporal_only: bool = True
    """train the temporal layers only; False trains the whole network of the stage"""
    layers: Optional[str] = None
    """a regular expression searched for in the names of the network's parameters, such as `output_blocks`: of those
    that would be trained, these are"""
    pretrained: Optional[FilePath] = None
    """the weights to start from: svd*.safetensors, the reference toolkit's .ckpt, or a file that this program wrote;
    empty starts from random weights"""
    output_dir: FilePath = "output/train"
    """folder of the run: checkpoints, log, curves, validation videos"""
    resume: Optional[FilePath] = None
    """auto goes on with the newest checkpoint in output_dir, if there is one; or the path of a checkpoint; empty starts
    anew"""
    checkpoint_every: Count = 500
    """steps between two checkpoints"""
    keep: CountOrNone = 3
    """how many of the newest checkpoints stay; 0 keeps all"""
    amp_level: Literal["auto", "O0", "O2", "bf16"] = "auto"
    """O0 trains in fp32; O2 computes in fp16 with fp32 weights, norms and loss; bf16 likewise, on Ascend, without a
    loss scale; auto is O2 on Ascend and O0 on CPU"""
    recompute: bool = False
    """keep less for the backward pass and compute it again: far less memory, about a third more time"""
    ema_decay: BelowOne = 0.9999
    """of the average of the weights, which is what is saved for use and validated with; 0 for none"""
    max_nonfinite: Count = 20
    """stop after so many steps in a row without a finite loss and gradient"""
    encode_chunk_size: Annotated[int, Range(1, MAX_FRAMES)] = 4
    """frames that the autoencoder encodes together"""
    log_every: Count = 10
    """steps between two lines in the log"""
    wandb: Optional[str] = None
    """project of Weights & Biases that the curves and validation videos go to as well; WANDB_MODE=offline keeps them on
    the disk; needs `pip install wandb`"""
    sink_size: Literal[-1] = -1
    """the reference toolkit's; -1 only"""


@dataclass
class DataloaderOptions(Options):
    """Batches."""

    batch_size: Annotated[int, Range(1, 65536)] = 1
    """clips in a batch, on each device"""
    shuffle: bool = True
    """a new order each epoch"""
    drop_remainder: bool = True
    """leave out an epoch's last, smaller batch"""
    num_workers: Annotated[int, Range(0, 1024)] = 0
    """processes that read videos; 0 reads in this one"""


@dataclass
class SchedulerOptions(Options):
    """The learning rate."""

    name: Literal["constant", "cosine_decay", "polynomial_decay"] = "constant"
    """constant, or falling from lr to end_lr by cosine_decay or polynomial_decay"""
    lr: Optional[Positive] = None
    """the highest; by default 1e-4 for a LoRA, 1e-5 for the temporal layers, 5e-6 for the whole network"""
    end_lr: Annotated[float, Range(0, 1e6)] = 1e-7
    """the last one of the two that fall, at most lr"""
    warmup_steps: CountOrNone = 0
    """updates in which it rises to lr"""
    power: Positive = 1.0
    """of polynomial_decay; 1 is a straight line"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name != "constant" and self.lr is not None and self.end_lr > self.lr:
            raise OptionError(f"end_lr: {self.end_lr:g} cannot be used; expected at most lr, {self.lr:g}")


@dataclass
class OptimizerOptions(Options):
    """AdamW, as PyTorch computes it."""

    name: Literal["adamw"] = "adamw"
    """adamw"""
    betas: Tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """decay of the two moments"""
    eps: Positive = 1e-8
    """added to the root of the second moment"""
    weight_decay: Weight = 0.01
    """decoupled, of all trained tensors"""


@dataclass
class SettingsOptions(Options):
    """How an update is made."""

    drop_overflow_update: bool = False
    """after an fp16 overflow go on with the next batches; False repeats the same ones with the lower loss scale"""
    gradient_accumulation_steps: Annotated[int, Range(1, 10**6)] = 1
    """batches in one update"""
    clip_grad: bool = True
    """limit the gradients"""
    clip_norm: Positive = 1.0
    """to this norm of all of them together"""


@dataclass
class SigmaOptions(Options):
    """The noise levels that are trained: ln σ ~ N(P_mean, P_std²), one σ per clip."""

    P_mean: Log = 1.0
    """1.0 for 576x1024, 0.7 for 320x576; lower for smaller frames"""
    P_std: Deviation = 1.6
    """the standard deviation of the logarithm; SVD's is 1.6"""


@dataclass
class CondAugOptions(Options):
    """The noise of the conditioning frame: ln cond_aug ~ N(mean, std²), one value per clip."""

    mean: Log = -3.0
    """of the logarithm"""
    std: Deviation = 0.5
    """the standard deviation of the logarithm"""
    strength: Optional[Annotated[float, Range(1e-6, 100)]] = None
    """of every clip instead, the same, such as the 0.02 that videos are made with by default"""

    def distribution(self) -> Tuple[float, float]:
        """Mean and standard deviation of ln cond_aug."""
        return (self.mean, self.std) if self.strength is None else (log(self.strength), 0.0)


@dataclass
class DropoutOptions(Options):
    """How often a clip is trained without its image, for classifier-free guidance; the three exclude each other."""

    both: Share = 0.1
    """probability that CLIP token and latent are dropped"""
    token: Share = 0.05
    """that only the CLIP token is"""
    latent: Share = 0.05
    """that only the latent is"""


@dataclass
class AutoencoderOptions(Options):
    """The loss of the stages autoencoder and decoder."""

    edge_weight: Weight = 0.5
    """of the differences between neighbouring pixels, and frames, beside the pixels'"""
    colour_weight: Weight = 1.0
    """of the mean colours of blocks of 8x8 pixels"""
    rms_weight: Weight = 0.0
    """of a clip's root mean square error, beside the mean absolute one: large errors count for more"""
    anchor_weight: Weight = 0.0
    """of the distance between the latent's first three channels and the mean red, green and blue of their 8x8 pixels,
    so that no colour is left out (stage autoencoder)"""
    kl_weight: Weight = 1e-3
    """of the latent's divergence from a unit Gaussian (stage autoencoder)"""
    latent_noise: Weight = 0.1
    """standard deviation of the noise added to scaled latents (stage decoder): it learns to forgive"""


@dataclass
class LoRAOptions(Options):
    """Low-rank adaptation in place of training the layers themselves."""

    rank: Annotated[int, Range(0, 4096)] = 0
    """0 trains no LoRA but the layers"""
    alpha: Optional[Positive] = None
    """the branch counts alpha / rank; by default once"""
    targets: str = "temporal"
    """temporal, spatial, all (attention layers), or a regular expression for names of linear layers"""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """share of what reaches the branch that is zeroed while training; needs whole batches (drop_remainder)"""
    pretrained: Optional[FilePath] = None
    """a LoRA file to start from, of the same rank, alpha and layers"""


@dataclass
class LatentCacheOptions(Options):
    """Clips encoded once, so that neither encoder is in memory while training."""

    folder: Optional[FilePath] = None
    """for the encoded clips; made if it is not there; empty encodes while training"""
    windows: Annotated[int, Range(1, 1000)] = 1
    """clips kept of each video"""
    draws: Annotated[int, Range(1, 64)] = 8
    """of the conditioning frame's noise kept for each clip"""


@dataclass
class ValidationOptions(ClipOptions):
    """What is measured and shown while training, always with the same clips, images, noise and seeds."""

    every: CountOrNone = 0
    """steps between, the first time before the first step; 0 for none"""
    holdout: CountOrNone = 0
    """videos kept out of training for it, evenly spread over the CSV file; those whose column `split` says validation
    are in any case; without any, training clips take their place"""
    clips: Annotated[int, Range(0, 1024)] = 4
    """of these videos, how many clips' loss is measured at fixed noise levels, and how many are animated from their
    first frame beside the clip itself, with their own frame rate and motion"""
    images: Optional[FilePath] = None
    """an image, or a folder of them, to animate besides, with the values below"""
    seeds: List[Seed] = field(default_factory=lambda: [42])
    """of the noise; each image is animated with each, clips with the first"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and not self.every:
            raise OptionError("images needs --train.validation.every")
        if not self.seeds:
            raise OptionError("seeds: an empty list cannot be used; give one, such as [42]")


@dataclass
class LossScaleOptions(Options):
    """The loss scale of fp16 training (O2)."""

    loss_scale_value: Annotated[float, Range(1, 2**24)] = 65536.0
    """to start with"""
    scale_factor: Annotated[float, Range(1 + 1e-6, 1e6)] = 2.0
    """what it is divided by after an overflow, and multiplied by after a window without"""
    scale_window: Count = 1000
    """updates in a window"""


@dataclass
class TrainingOptions:
    """All of them, with the data set's arguments; what is below which flag says :func:`groups`.

    Raises:
        UserError: options that do not go together.
    """

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

    def __post_init__(self) -> None:
        for name, annotation in DATASET.items():
            expect(f"--train.dataset.init_args.{name}", self.dataset[name], annotation)
        if self.scheduler.lr is None:
            lr = LORA_LR if self.lora.rank else TEMPORAL_LR if self.run.temporal_only else WHOLE_LR
            with flags_below("--train.scheduler."):
                self.scheduler = replace(self.scheduler, lr=lr)
        if self.lora.pretrained and not self.lora.rank:
            raise UserError("--train.lora.pretrained: tell the LoRA's rank as well, with --train.lora.rank")
        if self.lora.dropout and not (self.lora.rank and self.dataloader.drop_remainder):
            raise UserError(
                "--train.lora.dropout is of a LoRA, with batches of one size: --train.lora.rank, and "
                "--train.dataloader.drop_remainder=True"
            )
        if self.lora.rank and self.run.layers:
            raise UserError("--train.layers is not for a LoRA; choose its layers with --train.lora.targets")
        if not self.run.pretrained and (self.run.temporal_only or self.lora.rank):
            raise UserError(
                "--train.pretrained is empty: random layers would stay frozen; name a checkpoint, or train all with "
                "--train.temporal_only=False and without a LoRA"
            )
        if self.run.stage != "unet":
            self._refuse_the_unet_s_options()

    def _refuse_the_unet_s_options(self) -> None:
        useless = {
            "--train.lora.rank": self.lora.rank,
            "--train.latent_cache.folder": self.latent_cache.folder,
            "--train.validation.every": self.validation.every,
            "--train.temporal_only": self.run.temporal_only and self.run.stage == "autoencoder",
            "--train.layers": self.run.layers and self.run.stage == "autoencoder",
            "--train.recompute": self.run.recompute,
            f"--train.amp_level={self.run.amp_level}": self.run.amp_level in ("O2", "bf16"),
        }
        for flag, value in useless.items():
            if value:
                raise UserError(f"{flag} is not for --train.stage={self.run.stage}; leave it off")


def groups() -> Dict[str, Tuple[str, Type[Options]]]:
    """Name in :class:`TrainingOptions` -> what its flags are below, and its class."""
    prefixes = {"environment": "environment", "run": "train", "loss_scale": "LossScale"}
    named = {item.name: item.type for item in fields(TrainingOptions) if item.name != "dataset"}
    return {name: (prefixes.get(name, f"train.{name}"), group) for name, group in named.items()}


def pick(options: Any) -> Dict[str, Any]:
    """A group of options as arguments."""
    return dict(vars(options))
