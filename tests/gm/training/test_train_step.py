"""One update: accumulation, clipping, what stays frozen, what is skipped, and the two modes and precisions."""

from contextlib import contextmanager

import mindspore as ms
import numpy as np
import pytest

from gm.backend import kernel_fusion
from gm.networks.precision import set_compute_dtype
from gm.training.objective import mean_losses
from gm.training.optim import AdamWOptions
from gm.training.train_step import LossScale
from modules.training.stages import freeze, recompute_blocks
from modules.video_unet import is_temporal
from tests.gm.training.training_parts import make_inputs, make_step, random_unet, values

SMALL = {"channel_mult": (1,)}  # one level: the fastest network of the real classes
LR = 1e-3
# Steps along the gradient itself: AdamW with moments of one step and a large ε. Adam's own steps would blow up what is
# rounding: where a gradient is zero but for it, they have the size of the learning rate all the same.
PLAIN = AdamWOptions(betas=(1e-6, 1e-6), eps=1e4, weight_decay=0.0)
PLAIN_LR = 1e2


def run(net, steps=1, batches=1, sigma=(0.3, 5.0), **options):
    """Trains for some steps; returns the trained values and the results."""
    step = make_step(net, batches=batches, **{"options": PLAIN, **options})
    numbers = [range(batches * index, batches * (index + 1)) for index in range(steps)]
    results = [step([make_inputs(sigma, seed=number, size=4) for number in each], PLAIN_LR) for each in numbers]
    return values(net.get_parameters()), results


def assert_close(ours, theirs, tolerance=1e-5):
    for name, value in theirs.items():
        assert np.linalg.norm(ours[name] - value) <= tolerance * np.linalg.norm(value), name


def test_temporal_only_changes_exactly_the_temporal_tensors():
    net = random_unet(**SMALL)
    before = values(net.get_parameters())
    temporal = freeze(net, is_temporal)
    step = make_step(net, temporal, clip_norm=1.0)  # with weight decay, which moves what has no gradient too
    step([make_inputs()], LR)
    after = values(net.get_parameters())
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert set(temporal) == {name for name in before if is_temporal(name)}
    assert changed <= set(temporal)
    gradients, _ = make_step(net, temporal)._mean_gradients([make_inputs()])
    largest = {name: np.abs(g.asnumpy()).max() for name, g in zip(temporal, gradients)}
    still = set(largest) - changed
    assert all(
        largest[name] < 1e-6 for name in still
    )  # keys and queries over one context token: no gradient, no change
    assert len(changed) > 0.6 * len(largest)


def test_frozen_parameters_have_no_gradients_and_no_state():
    net = random_unet(**SMALL)
    temporal = freeze(net, is_temporal)
    step = make_step(net, temporal, ema_decay=0.9)
    gradients, _ = step._mean_gradients([make_inputs()])
    assert len(gradients) == len(temporal)
    assert len(step.optimizer.state()) == 2 * len(temporal) and len(step.average.state()) == len(temporal)


def test_accumulated_batches_count_as_one_large_batch():
    large, (result, *_) = run(random_unet(**SMALL), sigma=(0.3, 5.0, 0.7, 2.0))
    net = random_unet(**SMALL)
    whole = make_inputs((0.3, 5.0, 0.7, 2.0), size=4)
    frames = len(whole.x) // 4
    halves = [type(whole)(*(a[i * len(a) // 2 : (i + 1) * len(a) // 2] for a in whole)) for i in range(2)]
    assert len(halves[0].x) == 2 * frames
    accumulated = make_step(net, batches=2, options=PLAIN)(halves, PLAIN_LR)
    assert accumulated.grad_norm == pytest.approx(result.grad_norm, rel=1e-5)
    np.testing.assert_allclose(accumulated.loss_sums, result.loss_sums, rtol=1e-5)
    assert_close(values(net.get_parameters()), large)


def test_clipping_limits_the_norm_of_all_gradients_together():
    moved = {}
    for clip_norm in (None, 1e3, 0.5):
        net = random_unet(**SMALL)
        before = values(net.get_parameters())
        step = make_step(net, options=PLAIN, clip_norm=clip_norm)
        result = step([make_inputs()], PLAIN.eps)  # moves by the gradient
        after = values(net.get_parameters())
        moved[clip_norm] = np.sqrt(sum(np.square(after[n] - before[n], dtype=np.float64).sum() for n in before))
        assert result.grad_norm > 0.6
    assert moved[None] == pytest.approx(result.grad_norm, rel=1e-2)
    assert moved[1e3] == moved[None]
    assert moved[0.5] == pytest.approx(0.5, rel=1e-2)


def test_recompute_changes_nothing_but_memory():
    plain, results = run(random_unet(**SMALL))
    net = random_unet(**SMALL)
    recompute_blocks(net)
    recomputed, others = run(net)
    assert [result.grad_norm for result in results] == pytest.approx([o.grad_norm for o in others], rel=1e-6)
    assert_close(recomputed, plain)


@pytest.mark.slow
def test_both_modes_agree():
    pynative, results = run(random_unet(**SMALL), steps=2, batches=2, ema_decay=0.5, clip_norm=1.0)
    ms.set_context(mode=ms.GRAPH_MODE)
    graph, others = run(random_unet(**SMALL), steps=2, batches=2, ema_decay=0.5, clip_norm=1.0)
    assert [result.grad_norm for result in results] == pytest.approx([o.grad_norm for o in others], rel=1e-4)
    assert_close(graph, pynative)


def test_every_graph_is_fused_when_asked_and_only_once(monkeypatch):
    """A first update that is skipped has not compiled all of them."""
    opened = []

    @contextmanager
    def count():
        opened.append(True)
        yield True

    monkeypatch.setattr(kernel_fusion, "fused_kernels", count)
    ms.set_context(mode=ms.GRAPH_MODE)
    bad = make_inputs(size=4)
    bad.x[0, 0, 0, 0] = np.nan
    step = make_step(random_unet(**SMALL), fuse_kernels=True)
    for inputs in (bad, make_inputs(size=4), make_inputs(size=4)):
        step([inputs], LR)
    assert len(opened) == 2


# ----------------------------------------------------------------------------------------- what is not finite


def test_a_loss_that_is_not_finite_changes_nothing():
    net = random_unet(**SMALL)
    step = make_step(net, ema_decay=0.9)
    step([make_inputs()], LR)
    before = values([*net.get_parameters(), *step.optimizer.state().values(), *step.average.state().values()])
    bad = make_inputs()
    bad.x[0, 0, 0, 0] = np.nan
    result = step([bad], LR)
    assert not result.updated and not result.overflow and step.updates == 1
    after = values([*net.get_parameters(), *step.optimizer.state().values(), *step.average.state().values()])
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert step([make_inputs()], LR).updated and step.updates == 2


class Overflowing(LossScale):
    """The squares of its scaled gradients overflow fp32, as fp16's gradients do at smaller scales."""

    def __init__(self, value):
        super().__init__()
        self.value = value


@pytest.mark.parametrize("drop", [True, False])
def test_an_overflow_lowers_the_scale_and_loses_no_batch_unless_it_may(drop):
    net = random_unet(**SMALL)
    before = values(net.get_parameters())
    scale = Overflowing(2.0**72)
    result = make_step(net, loss_scale=scale, drop_overflow_update=drop)([make_inputs(t=1, size=4)], LR)
    assert result.updated is not drop and result.overflow is drop
    changed = any(before[p.name].tobytes() != p.asnumpy().tobytes() for p in net.get_parameters())
    assert changed is not drop
    assert scale.value == 2.0**71 if drop else 2.0**55 < scale.value < 2.0**70


def test_the_scale_cancels():
    plain, _ = run(random_unet(**SMALL), clip_norm=1.0)
    scaled, _ = run(random_unet(**SMALL), clip_norm=1.0, loss_scale=LossScale(1024.0))
    assert_close(scaled, plain)


def test_half_precision_trains_fp32_weights():
    full, results = run(random_unet(**SMALL))
    net = random_unet(**SMALL)
    set_compute_dtype(net, ms.float16)
    half, others = run(net, loss_scale=LossScale(1024.0))
    losses = [mean_losses(each[0].loss_sums)["loss"] for each in (results, others)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert others[0].grad_norm == pytest.approx(results[0].grad_norm, rel=2e-2)
    assert others[0].grad_norm != results[0].grad_norm
    assert {value.dtype for value in half.values()} == {np.dtype(np.float32)}


def test_one_frame_is_a_clip_too():
    net = random_unet(**SMALL)
    step = make_step(net)
    assert step([make_inputs(t=1)], LR).updated and step([make_inputs(t=2)], LR).updated


@pytest.mark.slow
def test_a_handful_of_clips_is_learned():
    net = random_unet(**SMALL)
    step = make_step(net, options=AdamWOptions(weight_decay=0.0), clip_norm=1.0)
    inputs = make_inputs((0.5, 1.0), size=4)
    losses = [mean_losses(step([inputs], 3e-3).loss_sums)["loss"] for _ in range(40)]
    assert losses[-1] < losses[0] / 10
