"""AdamW against PyTorch's, the learning rate against its formula, the loss scale."""

import math
from contextlib import nullcontext

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor

from gm.backend import operators
from gm.backend.ascend import AscendOperators
from gm.training.optim import AdamW, AdamWOptions, LearningRate
from gm.training.train_step import LARGEST, LossScale
from tests.gm.backend import mint_on_cpu
from tests.gm.training.diffusers_twin import Twin
from tests.gm.training.training_parts import make_objective, make_step, random_clips, random_unet, values

SHAPES = [(3, 4), (5,), (2, 3, 3, 1, 1), (1,)]


def random_arrays(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(shape) * scale).astype(np.float32) for shape in SHAPES]


def parameters():
    return [Parameter(Tensor(array), f"p{index}") for index, array in enumerate(random_arrays(0))]


def as_on_ascend():
    return operators.using(AscendOperators())


@pytest.mark.parametrize(
    "options",
    [AdamWOptions(), AdamWOptions(betas=(0.9, 0.98), weight_decay=0.1), AdamWOptions(eps=1e-3, weight_decay=0.0)],
)
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("door", [operators.training, nullcontext, as_on_ascend], ids=["loops", "kernel", "ascend"])
def test_ten_steps_are_pytorchs(options, mode, door, monkeypatch):
    mint_on_cpu.put_in_place(monkeypatch)
    ms.set_context(mode=mode)
    ours, theirs = parameters(), [torch.nn.Parameter(torch.from_numpy(array)) for array in random_arrays(0)]
    peer = torch.optim.AdamW(theirs, lr=1.0, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay)
    optimizer = AdamW(ours, options)
    for step in range(1, 11):
        gradients = random_arrays(step, scale=10.0 ** (-step))  # small ones too: eps and bias correction count
        lr = 1e-2 / step
        for group in peer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(theirs, gradients):
            parameter.grad = torch.from_numpy(gradient * np.float32(0.25))
        peer.step()
        with door():
            optimizer.update(tuple(map(Tensor, gradients)), 0.25, step, lr)
    for our, their in zip(ours, theirs):
        np.testing.assert_allclose(our.asnumpy(), their.detach().numpy(), rtol=2e-5, atol=2e-6)
    for our, their in zip(optimizer.second, theirs):
        np.testing.assert_allclose(our.asnumpy(), peer.state[their]["exp_avg_sq"].numpy(), rtol=3e-5)


def test_the_first_step_has_bias_correction():
    """g = 1, lr = 0.1 moves by 0.1, not by 0.316 as without it."""
    parameter = Parameter(Tensor([1.0], ms.float32), "p")
    optimizer = AdamW([parameter], AdamWOptions(weight_decay=0.0))
    optimizer.update((Tensor([1.0], ms.float32),), 1.0, 1, 0.1)
    assert parameter.asnumpy()[0] == pytest.approx(0.9, abs=1e-6)


def test_training_stays_with_diffusers_and_pytorchs_adamw():
    """Ten updates of the UNet, clipped, decayed: each tensor is within 1e-3, and went the same way."""
    net = random_unet(model_channels=64, channel_mult=(1,))
    twin = Twin(net, channel_mult=(1,))
    before = values(net.get_parameters())
    theirs = twin.parameters()
    peer = torch.optim.AdamW(theirs.values(), lr=1e-3, weight_decay=0.05)
    step = make_step(net, options=AdamWOptions(weight_decay=0.05), clip_norm=1.0)
    latents, cond = random_clips(t=2, size=4)
    for number in range(10):
        rng = np.random.default_rng(number)
        noise, sigma = rng.standard_normal(latents.shape, np.float32), np.exp(rng.standard_normal(2))
        peer.zero_grad()
        twin.loss(latents, cond, sigma, noise).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        peer.step()
        result = step([make_objective().inputs(latents, cond, sigma, noise)], 1e-3)
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-3)
    difference = distance = 0.0
    for name, parameter in net.parameters_and_names():
        our, their = parameter.asnumpy(), theirs[name].detach().numpy().reshape(parameter.shape)
        assert np.linalg.norm(our - their) <= 1e-3 * np.linalg.norm(their), name
        difference += np.square(our - their, dtype=np.float64).sum()
        distance += np.square(their - before[name], dtype=np.float64).sum()
    assert math.sqrt(difference / distance) <= 1e-2  # where a gradient is all rounding, Adam makes steps of it


def test_a_sharded_optimizer_holds_and_updates_its_share_only():
    ours = parameters()
    optimizer = AdamW(ours, AdamWOptions())
    optimizer.optim_filter = (True, False, True, False)  # what MindSpore sets up on the first of two Ascend cards
    optimizer.first, optimizer.second = optimizer._moments("adam_m"), optimizer._moments("adam_v")
    before = values(ours)
    optimizer.update(tuple(map(Tensor, random_arrays(1))), 1.0, 1, 0.1)
    changed = {p.name for p in ours if not np.array_equal(p.asnumpy(), before[p.name])}
    assert changed == {"p0", "p2"}
    assert set(optimizer.state()) == {"adam_m.p0", "adam_v.p0", "adam_m.p2", "adam_v.p2"}
    assert sum(moment.size for moment in optimizer.first) == 12 + 1 + 18 + 1
    assert optimizer.shapes()["adam_m.p1"] == (5,)


# ------------------------------------------------------------------------------------------------------ learning rate


def schedule(name, **changes):
    options = {"lr": 1.0, "end_lr": 0.1, "warmup_steps": 4, "power": 1.0, "total_steps": 15}
    return LearningRate(name, **{**options, **changes})


def test_warm_up_is_a_straight_line_to_the_highest_rate():
    for name in ("constant", "cosine_decay", "polynomial_decay"):
        assert [schedule(name)(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_decays_end_where_they_should():
    assert [schedule("constant")(step) for step in (5, 14)] == [1.0, 1.0]
    assert schedule("cosine_decay")(9) == pytest.approx(0.55)  # half way
    assert schedule("cosine_decay")(6) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.2)) / 2)
    assert schedule("polynomial_decay", power=2.0)(9) == pytest.approx(0.1 + 0.9 * 0.25)
    for name in ("cosine_decay", "polynomial_decay"):
        assert schedule(name)(14) == pytest.approx(0.1) and schedule(name)(99) == pytest.approx(0.1)


# --------------------------------------------------------------------------------------------------------- loss scale


def test_the_scale_falls_with_an_overflow_and_rises_after_a_window():
    scale = LossScale(1024.0, 2.0, 3)
    scale.adjust(False)
    assert scale.value == 512.0
    for finite in (True, True, False, True, True):
        scale.adjust(finite)
    assert scale.value == 256.0
    scale.adjust(True)
    assert scale.value == 512.0


def test_the_scale_stays_in_its_range_and_goes_on_where_it_was():
    scale = LossScale(2.0, 2.0, 1)
    scale.adjust(False)
    assert scale.value == 1.0 and not scale.can_shrink
    scale.adjust(False)
    assert scale.value == 1.0
    for _ in range(40):
        scale.adjust(True)
    assert scale.value == LARGEST
    other = LossScale(2.0, 2.0, 5)
    for _ in range(3):
        other.adjust(True)
    copy = LossScale(2.0, 2.0, 5)
    copy.restore(other.state())
    for each in (other, copy):
        each.adjust(True)
        each.adjust(True)
    assert copy.state() == other.state() == {"value": 4.0, "finite_updates": 0}
