"""Against torch.nn.functional.interpolate, on images as smooth and as rough as photographs are."""

import numpy as np
import pytest
import torch

from gm.networks.interpolate import antialiased_bicubic, bilinear, interpolate

pytestmark = pytest.mark.usefixtures("several_torch_threads")
SIZES = [((300, 500), (224, 373)), ((427, 320), (112, 84)), ((60, 50), (112, 93)), ((64, 64), (64, 96))]


def unit_image(height, width):
    rng = np.random.default_rng(height)
    walk = np.clip(np.cumsum(rng.normal(0, 8, (1, 3, height, width)), -1) + 128, 0, 255)
    return np.rint(walk).astype(np.float32) / np.float32(255)


@pytest.mark.parametrize(("size", "new_size"), SIZES)
@pytest.mark.parametrize("taps", [bilinear, antialiased_bicubic])
def test_nothing_but_the_last_bit_may_differ(size, new_size, taps):
    """They are equal to the last bit where PyTorch runs its kernels for AVX2 or AVX-512 on several threads."""
    image = unit_image(*size)
    mode = {"mode": "bilinear"} if taps is bilinear else {"mode": "bicubic", "antialias": True}
    theirs = torch.nn.functional.interpolate(torch.from_numpy(image), size=new_size, **mode).numpy()
    ours = interpolate(image, new_size, taps)
    if "AVX" in torch.backends.cpu.get_cpu_capability():
        assert np.array_equal(ours, theirs)
    assert np.abs(ours - theirs).max() <= 1e-6
