"""The reconstruction's loss against its formula in NumPy, and what each term sees."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.training.autoencoder_loss import ReconstructionLoss, block_means

SHAPE = (2, 3, 3, 16, 24)


def value(decoded, frames, edge_weight=0.0, colour_weight=0.0, rms_weight=0.0):
    loss = ReconstructionLoss(edge_weight, colour_weight, rms_weight)
    return loss(Tensor(decoded), Tensor(frames)).asnumpy()


def clips(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def means(error):
    """Of each clip."""
    return np.abs(error).reshape(len(error), -1).mean(1)


def test_every_term():
    decoded, frames = clips(0), clips(1)
    error = (decoded - frames).astype(np.float64)
    edges = sum(means(np.diff(error, axis=axis)) for axis in (1, 3, 4))
    blocks = error.reshape(2, 3, 3, 2, 8, 3, 8).mean((4, 6))
    colours = means(blocks) + means(np.roll(blocks, -1, axis=2) - blocks)
    np.testing.assert_allclose(block_means(Tensor(decoded - frames)).asnumpy(), blocks, atol=1e-5)
    rms = np.sqrt((error**2).mean((1, 2, 3, 4)))
    want = means(error) + 0.5 * edges + 2 * colours + 3 * rms
    np.testing.assert_allclose(value(decoded, frames, 0.5, 2.0, 3.0), want, rtol=1e-4)


def test_the_gradient_is_finite_where_nothing_is_wrong():
    frames = Tensor(clips(0))
    gradient = ms.grad(lambda x: ReconstructionLoss(0.5, 1.0, 1.0)(x, frames).sum())(frames)
    np.testing.assert_array_equal(gradient.asnumpy(), 0)


def test_single_frames_have_no_edges_in_time():
    decoded, frames = clips(0)[:, :1], clips(1)[:, :1]
    error = decoded - frames
    edges = sum(means(np.diff(error, axis=axis)) for axis in (3, 4))
    np.testing.assert_allclose(value(decoded, frames, 1.0), means(error) + edges, rtol=1e-4)


@pytest.mark.parametrize(("shift", "more"), [((0.1, 0.1, 0.1), 0.1), ((0.1, -0.1, 0.0), (0.2 + 0.4) / 3)])
def test_a_wrong_colour_counts_for_more_than_a_wrong_brightness(shift, more):
    """By hand: the mean of |m|, and of the three differences between channels."""
    frames = np.zeros(SHAPE, np.float32)
    decoded = frames + np.array(shift, np.float32).reshape(3, 1, 1)
    plain = value(decoded, frames)
    np.testing.assert_allclose(value(decoded, frames, colour_weight=1.0) - plain, more, rtol=1e-4)
