"""Numbers that training cannot use are refused where the options are declared."""

from math import inf, nan

import pytest

from gm.config.values import OptionError
from modules.training import options


@pytest.mark.parametrize(
    ("group", "values"),
    [
        (options.OptimizerOptions, {"betas": (0.9, 1.0)}),
        (options.OptimizerOptions, {"betas": (0.9,)}),
        (options.OptimizerOptions, {"eps": 0.0}),
        (options.OptimizerOptions, {"weight_decay": -1.0}),
        (options.SchedulerOptions, {"name": "linear"}),
        (options.SchedulerOptions, {"lr": 0.0}),
        (options.SchedulerOptions, {"end_lr": 2.0}),
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
