"""Networks with what a card would stumble over, run by the dry run's test: each must be found, with its line."""

import sys

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops


class Python(nn.Cell):
    def construct(self, x):
        return (x + x) * Tensor(np.square(x.asnumpy()))  # PyExecute


class Host(nn.Cell):
    def construct(self, x):
        return x * int(x.sum())  # host operator


class Online(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((4, 4, 3, 3), np.float32)))
        self.conv = ops.Conv2D(4, 3)

    def construct(self, x):
        return self.conv(x, self.weight)  # aclop


class Wide(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((4, 4, 1, 1), np.float32)))

    def construct(self, x):
        return mint.nn.functional.conv2d(x.reshape(1, 4, 1, 9216), self.weight)  # width 9216


ms.set_device("Ascend")
ms.set_context(mode=ms.GRAPH_MODE)
for make in (Host, Online, Wide, Python):  # the last one ends the program
    sys.stdout.write(f"{make.__name__}: {make()(Tensor(np.zeros((1, 4, 96, 96), np.float32))).shape}\n")
