import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

from gm.networks.resize import resize, resize_matrix


@pytest.mark.parametrize("size", [(576, 1024), (224, 224), (100, 350), (64, 40), (225, 223)])
def test_resize_is_diffusers(size):
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, *size))
    theirs = _resize_with_antialiasing(torch.from_numpy(image), (224, 224)).numpy()  # in fp64, as here
    np.testing.assert_allclose(resize(image, 224, 224), theirs, atol=1e-6)


def test_rows_of_a_resize_matrix_sum_to_one():
    for size, new in ((576, 224), (50, 224), (1, 3), (7, 1)):
        np.testing.assert_allclose(resize_matrix(size, new).sum(axis=1), 1, rtol=1e-9)
