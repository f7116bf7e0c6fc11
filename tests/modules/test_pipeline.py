"""The pipeline's options and its sampler."""

import pytest

from gm.config.values import OptionError
from gm.sampling import samplers, schedules
from modules import video_guidance
from modules.options import VideoOptions, choose_sampler


@pytest.mark.parametrize("value", [10**30, -1, 1e300, float("nan"), float("inf"), True, "many", None, [1]])
@pytest.mark.parametrize("name", ["fps", "motion_bucket_id", "decode_chunk_size", "sampling_steps", "feature_cache"])
def test_numbers_out_of_their_ranges_are_refused_by_name(name, value):
    with pytest.raises(OptionError, match=f"^{name}: .* cannot be used; expected a whole number from [01] to [0-9]+$"):
        VideoOptions(**{name: value})


@pytest.mark.parametrize("value", [1e300, float("nan"), float("inf"), -1000.0])
@pytest.mark.parametrize("name", ["noise_aug_strength", "min_cfg", "max_cfg", "lora_scale"])
def test_so_are_infinities(name, value):
    with pytest.raises(OptionError, match=f"^{name}: .* cannot be used; expected a number from -?[0-9]+ to 100$"):
        VideoOptions(**{name: value})


@pytest.fixture
def current():
    """A sampler as a YAML file gives it."""
    guider = video_guidance.LinearPredictionGuider(2.0, 1.5)
    return samplers.EulerEDMSampler(schedules.EDMDiscretization(0.01, 500.0), guider, 20)


def parts(sampler):
    guider = sampler.guider
    scales = (guider.min_scale, guider.max_scale)
    return type(sampler), type(sampler.discretization), type(guider), scales, guider.interval, sampler.num_steps


def test_what_no_option_names_stays_the_yaml_s(current):
    before = parts(current)
    assert choose_sampler(current, VideoOptions()) is current and parts(current) == before
    assert choose_sampler(current, VideoOptions(schedule="karras")).discretization.sigma_max == 500.0


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
@pytest.mark.parametrize("guider", video_guidance.GUIDERS)
def test_each_part_can_be_replaced(current, name, schedule, guider):
    interval = [0.5, 100.0]
    options = VideoOptions(
        sampler=name, schedule=schedule, guider=guider, max_cfg=3.0, sampling_steps=4, guidance_interval=interval
    )
    scales = (3.0 if guider == "constant" else 1.5, 3.0)
    kinds = samplers.SAMPLERS[name], schedules.SCHEDULES[schedule], video_guidance.GUIDERS[guider]
    assert parts(choose_sampler(current, options)) == (*kinds, scales, tuple(interval), 4)


def test_karras_sigmas_in_place_of_others_are_svd_s(current):
    current.discretization = schedules.AlignYourStepsDiscretization()
    assert choose_sampler(current, VideoOptions(schedule="karras")).discretization.sigma_max == 700.0


def test_a_constant_guider_has_one_scale(current):
    with pytest.raises(OptionError, match="^min_cfg: the constant guider has one scale"):
        choose_sampler(current, VideoOptions(guider="constant", min_cfg=1.0))
