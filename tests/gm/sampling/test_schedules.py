import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules

from gm.sampling.schedules import AlignYourStepsDiscretization, EDMDiscretization


@pytest.mark.parametrize("steps", [1, 2, 25, 30])
def test_karras_sigmas_are_diffusers(steps):
    scheduler = EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, prediction_type="v_prediction"
    )
    sigmas = EDMDiscretization(sigma_max=700.0)(steps)
    if steps > 1:  # the peer divides by steps - 1
        scheduler.set_timesteps(steps)
        np.testing.assert_allclose(sigmas, scheduler.sigmas.numpy(), rtol=1e-5)
    assert sigmas[0] == pytest.approx(700.0)
    assert sigmas[-1] == 0
    assert len(sigmas) == steps + 1


def test_align_your_steps_are_the_published_ten():
    published = AysSchedules["StableDiffusionVideoSigmas"]
    np.testing.assert_allclose(AlignYourStepsDiscretization()(10), published, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 7, 20, 50])
def test_align_your_steps_interpolated(steps):
    sigmas = AlignYourStepsDiscretization()(steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(700.0)
    assert np.all(np.diff(sigmas) < 0)
    assert sigmas[-1] == 0
    if steps == 20:  # every other one is published
        np.testing.assert_allclose(sigmas[:-1:2], AlignYourStepsDiscretization()(10)[:-1], rtol=1e-9)
