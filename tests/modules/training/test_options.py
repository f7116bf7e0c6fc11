"""Numbers that training cannot use are refused where the options are declared."""

from math import exp, inf, nan

import pytest

import train
from gm.config.values import OptionError
from gm.errors import UserError
from modules.training import options


def resolved_lr(*flags):
    return train.read_options(train.build_parser().parse_args([*NEEDED, *flags])).scheduler.lr


NEEDED = ["--train.pretrained=x", "--train.dataset.init_args.data_dir=."]
NEEDED += ["--train.dataset.init_args.metadata=x", "--train.dataset.init_args.frames=2"]


def test_each_mode_has_its_rate_and_a_given_one_counts():
    assert resolved_lr() == 1e-5 and resolved_lr("--train.temporal_only=False") == 5e-6
    assert resolved_lr("--train.lora.rank=16") == 1e-4 == resolved_lr("--config=configs/svd_train_lora.yaml")
    assert resolved_lr("--config=configs/svd_train.yaml") == 1e-5
    assert resolved_lr("--train.lora.rank=16", "--train.scheduler.lr=3e-4") == 3e-4


def test_a_constant_rate_has_no_last_one():
    assert resolved_lr("--train.scheduler.name=constant", "--train.scheduler.lr=1e-8") == 1e-8
    with pytest.raises(UserError, match=r"^--train\.scheduler\.end_lr: 0\.001 .* expected at most lr, 1e-05"):
        resolved_lr("--train.scheduler.name=cosine_decay", "--train.scheduler.end_lr=1e-3")


def test_a_fixed_noise_of_the_first_frame():
    assert options.CondAugOptions().distribution() == (-3.0, 0.5)
    mean, std = options.CondAugOptions(strength=0.02).distribution()
    assert exp(mean) == pytest.approx(0.02) and std == 0


@pytest.mark.parametrize(
    ("group", "values"),
    [
        (options.OptimizerOptions, {"betas": (0.9, 1.0)}),
        (options.OptimizerOptions, {"betas": (0.9,)}),
        (options.OptimizerOptions, {"eps": 0.0}),
        (options.OptimizerOptions, {"weight_decay": -1.0}),
        (options.SchedulerOptions, {"name": "linear"}),
        (options.SchedulerOptions, {"lr": 0.0}),
        (options.SchedulerOptions, {"end_lr": 2.0, "lr": 1.0, "name": "cosine_decay"}),
        (options.SchedulerOptions, {"warmup_steps": -1}),
        (options.SchedulerOptions, {"power": 0.0}),
        (options.LossScaleOptions, {"loss_scale_value": 0.5}),
        (options.LossScaleOptions, {"loss_scale_value": 2.0**30}),
        (options.LossScaleOptions, {"scale_factor": 1.0}),
        (options.LossScaleOptions, {"scale_window": 0}),
        (options.RunOptions, {"ema_decay": 1.0}),
        (options.RunOptions, {"ema_decay": -0.1}),
        (options.SigmaOptions, {"P_mean": nan}),
        (options.SigmaOptions, {"P_mean": inf}),
        (options.SigmaOptions, {"P_std": -0.1}),
        (options.CondAugOptions, {"std": inf}),
        (options.DropoutOptions, {"both": -0.1}),
        (options.DropoutOptions, {"token": 1.1}),
        (options.DropoutOptions, {"latent": nan}),
        (options.LatentCacheOptions, {"windows": 0}),
        (options.LatentCacheOptions, {"draws": 0}),
        (options.LoRAOptions, {"rank": -1}),
        (options.LoRAOptions, {"alpha": 0.0}),
        (options.LoRAOptions, {"alpha": nan}),
    ],
)
def test_a_number_out_of_its_range(group, values):
    with pytest.raises(OptionError, match=f"^{next(iter(values))}: "):
        group(**values)
