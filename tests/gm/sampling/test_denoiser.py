import numpy as np
import pytest

from gm.networks.conditioner import Conditioning
from gm.sampling.denoiser import Denoiser, VScalingWithEDMcNoise

SIGMAS = [0.002, 0.5, 1.0, 30.0, 700.0]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_preconditioning_keeps_unit_variance(sigma):
    """For data and prediction of unit variance: the input has it, and so has the training target (EDM, B.6)."""
    c = VScalingWithEDMcNoise()(sigma)
    assert c.c_in**2 * (1 + sigma**2) == pytest.approx(1)
    target_variance = ((1 - c.c_skip) ** 2 + (c.c_skip * sigma) ** 2) / c.c_out**2
    assert target_variance == pytest.approx(1)
    assert c.c_noise == pytest.approx(0.25 * np.log(sigma))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_v_prediction_recovers_the_data(sigma):
    """With alpha = 1/√(1+σ²), x/√(1+σ²) = alpha·x0 + sin·n and v = alpha·n - sin·x0 (Salimans & Ho 2022)."""
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 1, 3, 4, 2, 2))
    alpha, sin = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
    cond = Conditioning(np.zeros((1, 8)), np.zeros((1, 1, 8)), np.zeros((1, 4, 2, 2)))

    def network(x, c_noise, given):
        np.testing.assert_allclose(x, alpha * x0 + sin * noise, rtol=1e-4, atol=1e-5)
        assert c_noise.shape == (1,)
        assert given is cond
        return alpha * noise - sin * x0

    out = Denoiser(VScalingWithEDMcNoise())(network, x0 + sigma * noise, sigma, cond)
    np.testing.assert_allclose(out, x0, rtol=2e-3, atol=2e-3)
