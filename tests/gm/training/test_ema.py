"""The average of the weights against its recurrence, and its exchange with the network's."""

from contextlib import nullcontext

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gm.backend import operators
from gm.backend.ascend import AscendOperators
from gm.training.optim import WeightAverage


def walk(average, parameter, steps, door):
    """Moves the weights and the average; returns the average by the recurrence in double precision."""
    expected = parameter.asnumpy().astype(np.float64)
    for step in range(steps):
        parameter.set_data(Tensor(np.random.default_rng(step).standard_normal(3).astype(np.float32)))
        with door():
            average.update(step)
        decay = min(average.decay, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.asnumpy()
    return expected


def as_on_ascend():
    return operators.using(AscendOperators())


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("door", [operators.training, nullcontext, as_on_ascend], ids=["loops", "operators", "ascend"])
def test_the_average_follows_its_recurrence(mode, door):
    ms.set_context(mode=mode)
    parameter = Parameter(Tensor([1.0, 2.0, 3.0], ms.float32), "p")
    average = WeightAverage([parameter], 0.5)
    expected = walk(average, parameter, 12, door)
    np.testing.assert_allclose(average.averages[0].asnumpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_decay_rises_to_its_value():
    average = WeightAverage([Parameter(Tensor([1.0]), "p")], 0.9999)
    rates = [average.rate(step) for step in (0, 90, 10**6)]
    assert rates == pytest.approx([0.9, 0.09, 1e-4], rel=1e-3)


def test_it_starts_at_the_weights_in_memory_of_its_own():
    parameter = Parameter(Tensor([1.0], ms.float32), "p")
    average = WeightAverage([parameter], 0.9)
    parameter.set_data(Tensor([5.0], ms.float32))
    assert average.state()["average.p"].asnumpy() == [1.0]


def test_swapped_weights_come_back_bit_for_bit_even_after_an_error():
    parameter = Parameter(Tensor([0.1, 0.2], ms.float32), "p")
    average = WeightAverage([parameter], 0.9)
    parameter.set_data(Tensor([3.0, 4.0], ms.float32))
    with pytest.raises(KeyError), average.swapped():
        assert np.array_equal(parameter.asnumpy(), np.array([0.1, 0.2], np.float32))
        assert np.array_equal(average.averages[0].asnumpy(), [3.0, 4.0])
        raise KeyError
    assert np.array_equal(parameter.asnumpy(), [3.0, 4.0])
    assert np.array_equal(average.averages[0].asnumpy(), np.array([0.1, 0.2], np.float32))
