"""PyTorch's Gaussian noise without PyTorch."""

import numpy as np
import pytest
import torch

from gm.sampling.noise import TorchGenerator

SIZES = [1, 3, 15, 16, 17, 31, 32, 33, 100_003, (1, 14, 4, 16, 24), 5, (2, 3, 64, 64), 2]


@pytest.mark.parametrize("seed", [0, 1, 42, 123456789, 2**31 - 1, 2**32 - 1, 2**32 + 7, 2**63 + 3])
def test_several_draws_one_after_the_other(seed):
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for size in SIZES:
        shape = (size,) if isinstance(size, int) else size
        drawn = ours.standard_normal(shape)
        wanted = torch.randn(shape, generator=theirs).numpy()
        assert drawn.shape == shape and drawn.dtype == np.float32
        assert np.abs(drawn - wanted).max() <= 1e-6


def test_a_draw_in_half_precision_is_the_rounded_one():
    ours = TorchGenerator(3).standard_normal((64, 64)).astype(np.float16)
    theirs = torch.randn((64, 64), generator=torch.Generator().manual_seed(3), dtype=torch.float16).numpy()
    assert np.abs(ours.astype(np.float32) - theirs).max() <= 2**-9 and (ours == theirs).mean() > 0.99
