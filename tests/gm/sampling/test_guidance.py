import numpy as np
import pytest

from gm.errors import UserError
from gm.sampling.guidance import ConstantGuider
from modules.video_guidance import LinearPredictionGuider, TrapezoidPredictionGuider, TrianglePredictionGuider


def test_linear_scale_rises_from_min_to_max():
    np.testing.assert_allclose(LinearPredictionGuider(2.5, 1.0).scales(4), [1.0, 1.5, 2.0, 2.5])


def test_triangle_peaks_in_the_middle():
    np.testing.assert_allclose(TrianglePredictionGuider(3.0, 1.0).scales(5), [1, 2, 3, 2, 1])


def test_trapezoid_is_flat_over_the_middle_half():
    scales = TrapezoidPredictionGuider(3.0, 1.0).scales(9)
    np.testing.assert_allclose(scales, [1, 2, 3, 3, 3, 3, 3, 2, 1])


def test_constant_scale():
    np.testing.assert_allclose(ConstantGuider(2.0).scales(3), [2, 2, 2])
    with pytest.raises(UserError, match="^min_scale: "):
        ConstantGuider(2.0, 1.0)


@pytest.mark.parametrize("guider", [LinearPredictionGuider(2.5, 1.0), TrianglePredictionGuider(2.5, 1.5)])
def test_guidance_is_linear_between_the_halves(guider):
    rng = np.random.default_rng(0)
    uncond, cond = rng.standard_normal((2, 1, 6, 4, 2, 2)).astype(np.float32)
    out = guider(uncond, cond)
    scales = guider.scales(6)
    for frame in range(6):
        expected = (1 - scales[frame]) * uncond[0, frame] + scales[frame] * cond[0, frame]
        np.testing.assert_allclose(out[0, frame], expected, rtol=1e-5, atol=1e-6)
    assert out.dtype == np.float32


def test_scale_one_needs_no_unconditional_half():
    assert not ConstantGuider(1.0).is_active(14, 1.0)
    assert not LinearPredictionGuider(2.5, 1.0).is_active(1, 1.0)
    assert LinearPredictionGuider(2.5, 1.0).is_active(14, 1.0)


def test_guidance_on_an_interval_of_sigmas():
    guider = ConstantGuider(2.0)
    guider.interval = (0.5, 100.0)
    assert [guider.is_active(14, sigma) for sigma in (0.1, 0.5, 3.0, 100.0, 700.0)] == [False, True, True, True, False]
    assert ConstantGuider(2.0).is_active(14, 700.0), "the interval is one guider's own"
