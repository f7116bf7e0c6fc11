"""Samplers on a problem with a known solution: Gaussian data, whose ideal denoiser is linear.

For data N(0, s²) the denoiser is D(x; σ) = s²/(s² + σ²)·x, and the probability flow takes x at σ_max to
x·s/√(s² + σ_max²) at σ = 0 (Karras et al. 2022, equation 1).
"""

import numpy as np
import pytest

from gm.sampling.guidance import ConstantGuider
from gm.sampling.samplers import (
    ConsistencySampler,
    DPMPP2MSampler,
    EulerAncestralSampler,
    EulerEDMSampler,
    HeunEDMSampler,
)
from gm.sampling.schedules import EDMDiscretization

KINDS = (EulerEDMSampler, HeunEDMSampler, EulerAncestralSampler, DPMPP2MSampler, ConsistencySampler)

DATA_STD = 0.7
SIGMA_MAX = 20.0


def denoise(x, sigma):
    return DATA_STD**2 / (DATA_STD**2 + sigma**2) * x


def make(kind, steps, **options):
    return kind(EDMDiscretization(0.01, SIGMA_MAX), ConstantGuider(1.0), steps, **options)


def error(kind, steps):
    noise = np.ones((4,), np.float32)
    start = noise * np.sqrt(1 + SIGMA_MAX**2)
    exact = start * DATA_STD / np.sqrt(DATA_STD**2 + SIGMA_MAX**2)
    out = make(kind, steps)(denoise, noise, np.random.default_rng(0))
    return float(np.abs(out - exact).max())


@pytest.mark.parametrize("kind, order", [(EulerEDMSampler, 1), (HeunEDMSampler, 2), (DPMPP2MSampler, 2)])
def test_order_of_convergence(kind, order):
    ratio = error(kind, 20) / error(kind, 40)
    assert ratio > 0.8 * 2**order
    assert error(kind, 160) < 0.01


@pytest.mark.parametrize("kind", [EulerAncestralSampler, EulerEDMSampler])
def test_stochastic_samplers_keep_the_data_s_distribution(kind):
    options = {"s_churn": 40.0} if kind is EulerEDMSampler else {}
    noise = np.random.default_rng(1).standard_normal(20000).astype(np.float32)
    out = make(kind, 400, **options)(denoise, noise, np.random.default_rng(2))
    assert abs(out.std() / DATA_STD - 1) < 0.05
    assert abs(out.mean()) < 0.02


@pytest.mark.parametrize("steps", [1, 4])
def test_consistency_sampling_of_a_consistency_function_keeps_the_data_s_distribution(steps):
    """For Gaussian data the map along the flow to σ = 0 scales by s/√(s² + σ²): what a distilled network learns."""
    sampler = ConsistencySampler(EDMDiscretization(0.01, SIGMA_MAX), ConstantGuider(1.0), steps)
    noise = np.random.default_rng(1).standard_normal(20000).astype(np.float32)
    out = sampler(lambda x, sigma: x * DATA_STD / np.sqrt(DATA_STD**2 + sigma**2), noise, np.random.default_rng(2))
    assert abs(out.std() / DATA_STD - 1) < 0.03


def test_consistency_sampling_ends_well_above_the_lowest_sigma():
    sigmas = ConsistencySampler(EDMDiscretization(0.002, 700.0), ConstantGuider(1.0), 4).sigmas()
    assert len(sigmas) == 5 and sigmas[0] == pytest.approx(700) and 0.3 < sigmas[3] < 1.0 and sigmas[4] == 0


def test_ancestral_without_fresh_noise_is_euler():
    noise = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    ancestral = make(EulerAncestralSampler, 10, eta=0.0)(denoise, noise, np.random.default_rng(0))
    euler = make(EulerEDMSampler, 10)(denoise, noise, np.random.default_rng(0))
    np.testing.assert_allclose(ancestral, euler, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_depends_on_nothing_but_its_noise_and_generator(kind):
    sampler = make(kind, 6)
    noise = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    first, second = (sampler(denoise, noise, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float32


def test_euler_calls_the_denoiser_once_a_step_and_heun_twice_but_for_the_last():
    for kind, calls in ((EulerEDMSampler, 5), (HeunEDMSampler, 9), (DPMPP2MSampler, 5)):
        sigmas = []
        make(kind, 5)(lambda x, sigma, seen=sigmas: seen.append(sigma) or x, np.ones(2), np.random.default_rng(0))
        assert len(sigmas) == calls
        assert min(sigmas) > 0
