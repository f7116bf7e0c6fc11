"""Stable Diffusion's noise levels against diffusers' schedulers, and preconditioning against the definitions."""

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from gm.sampling.guidance import ConstantGuider
from gm.sampling.samplers import ConsistencySampler
from gm.sampling.training_levels import (
    IMAGE_SCHEDULES,
    TRAINING_SIGMAS,
    EpsScaling,
    VScaling,
    image_schedule,
    training_index,
    training_sigma,
)

TRAINING = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_training_levels():
    assert TRAINING_SIGMAS[0] == pytest.approx(0.02917, abs=5e-6)
    assert TRAINING_SIGMAS[-1] == pytest.approx(14.6146, abs=5e-5)
    index = np.array([0.0, 0.5, 17.0, 998.25, 999.0])
    np.testing.assert_allclose([training_index(sigma) for sigma in training_sigma(index)], index, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 20, 30])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_spacings_are_diffusers(spacing, steps):
    theirs = EulerDiscreteScheduler(**TRAINING, timestep_spacing=spacing, steps_offset=1)
    theirs.set_timesteps(steps)
    np.testing.assert_allclose(image_schedule(spacing)(steps), theirs.sigmas.numpy(), rtol=1e-4)


def test_karras_levels_and_rounded_indices_are_diffusers():
    theirs = DPMSolverMultistepScheduler(**TRAINING, use_karras_sigmas=True)
    theirs.set_timesteps(20)
    sigmas = image_schedule("karras")(20)
    np.testing.assert_allclose(sigmas, theirs.sigmas.numpy(), rtol=1e-4)
    assert [EpsScaling("nearest")(sigma).c_noise for sigma in sigmas[:-1]] == theirs.timesteps.tolist()


def test_spacings_of_comfyui_and_sgm():
    normal, sgm = image_schedule("linspace")(3), image_schedule("sgm")(4)
    assert normal[[0, 2, 3]] == pytest.approx([TRAINING_SIGMAS[-1], TRAINING_SIGMAS[0], 0])
    assert normal[1] == pytest.approx(np.sqrt(TRAINING_SIGMAS[499] * TRAINING_SIGMAS[500]))
    assert sgm == pytest.approx([*TRAINING_SIGMAS[[999, 749, 499, 249]], 0])


def test_align_your_steps():
    steps = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    assert image_schedule("ays", steps)(10) == pytest.approx([*TRAINING_SIGMAS[steps], 0])
    assert len(image_schedule("ays", steps)(5)) == 6


@pytest.mark.parametrize("name", IMAGE_SCHEDULES)
def test_every_schedule_falls_to_zero(name):
    sigmas = image_schedule(name)(12)
    assert len(sigmas) == 13 and sigmas[-1] == 0 and (np.diff(sigmas) < 0).all()
    few = ConsistencySampler(image_schedule(name), ConstantGuider(1.0), 4).sigmas()
    assert len(few) == 5 and few[-2] > 0.05, "the last step of few has noise to remove"


@pytest.mark.parametrize("sigma", [0.05, 1.0, 14.0])
@pytest.mark.parametrize("kind", [EpsScaling, VScaling])
def test_preconditioning_recovers_the_data(kind, sigma):
    """x = x0 + σ·n; the network predicts n, or v = (n - σ·x0) / √(1 + σ²), from x / √(1 + σ²)."""
    x0, noise = np.random.default_rng(0).standard_normal((2, 5))
    c = kind()(sigma)
    prediction = noise if kind is EpsScaling else (noise - sigma * x0) / np.sqrt(1 + sigma**2)
    assert c.c_in == pytest.approx(1 / np.sqrt(1 + sigma**2))
    np.testing.assert_allclose(c.c_skip * (x0 + sigma * noise) + c.c_out * prediction, x0, atol=1e-9)


def test_what_the_network_is_told_between_two_levels():
    sigma = float(training_sigma(np.array(500.7)))
    assert EpsScaling("interpolated")(sigma).c_noise == pytest.approx(500.7)
    assert EpsScaling("nearest")(sigma).c_noise == 501 and EpsScaling("nearest")(sigma).c_out == -sigma
    assert EpsScaling("quantized")(sigma).c_noise == 501
    assert EpsScaling("quantized")(sigma).c_out == -TRAINING_SIGMAS[501]
