"""Updates in parameters' own memory: that operators and compiled networks see them, and the sum of squares. The updates
themselves are tested with their users: tests/gm/training/test_optim.py and test_ema.py."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from gm.backend import in_place
from gm.backend.kernels.updates import BLOCK


class Holder(nn.Cell):
    def __init__(self, values):
        super().__init__()
        self.weight = Parameter(Tensor(values), "weight")

    def construct(self, x):
        return x + self.weight


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used before"])
@pytest.mark.parametrize("replaced", [False, True], ids=["first values", "values set"])
def test_a_network_sees_the_change(mode, used, replaced):
    ms.set_context(mode=mode)
    net, zeros = Holder(np.zeros(5, np.float32)), Tensor(np.zeros(5, np.float32))
    if used:
        net(zeros).asnumpy()
    if replaced:
        net.weight.set_data(Tensor(np.zeros(5, np.float32)))
    target = Parameter(Tensor(np.full(5, 4, np.float32)), "target")
    for expected in (2.0, 3.0):
        in_place.move(net.weight, target, 0.5)
        np.testing.assert_array_equal(net(zeros).asnumpy(), expected)
        np.testing.assert_array_equal(net.weight.asnumpy(), expected)


def test_it_is_possible_here():
    assert in_place.possible()


@pytest.mark.parametrize("size", [1, 15, BLOCK - 1, BLOCK, 3 * BLOCK + 17, 40 * BLOCK])
def test_the_sum_of_squares(size):
    values = np.random.default_rng(size).standard_normal(size, np.float32) + 1
    result = in_place.square_sum(Tensor(values.reshape(1, size)))
    assert result == pytest.approx(np.square(values.astype(float)).sum(), rel=1e-6)


def test_the_sum_of_squares_is_not_finite_if_a_number_is_not():
    for bad in (np.nan, np.inf):
        assert not np.isfinite(in_place.square_sum(Tensor(np.array([1, bad, 2], np.float32))))
