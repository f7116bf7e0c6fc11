"""A stage gives its memory back when it ends."""

import mmap

import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.networks.layers import Linear
from gm.weights.model_part import ModelPart
from gm.weights.safetensors_file import save_safetensors

SIZE = 2048  # 16 MiB of weights


class Net(nn.Cell):
    """One large layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(SIZE, SIZE)

    def construct(self, x: Tensor) -> Tensor:
        return self.linear(x)


def mapped_bytes(name: str) -> int:
    """Resident bytes of this process that belong to a file."""
    total, inside = 0, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if line.split()[0].count("-") == 1 and not line.split()[0].endswith(":"):
                inside = line.rstrip().endswith(name)
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


@pytest.fixture
def stage(tmp_path):
    rng = np.random.default_rng(0)
    weights = {"linear.weight": rng.standard_normal((SIZE, SIZE)), "linear.bias": rng.standard_normal(SIZE)}
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, {name: array.astype(np.float32) for name, array in weights.items()}, {})
    stage = ModelPart(Net, "", "a layer")
    stage.attach(path, offload=True)
    return stage


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system keeps pages as it likes")
def test_the_pages_of_the_file_go_and_come_back(stage):
    x = Tensor(np.ones((1, SIZE), np.float32))
    results = []
    for _ in range(2):
        with stage as net:
            results.append(net(x).asnumpy())
            assert mapped_bytes("weights.safetensors") > SIZE * SIZE * 4 * 0.9
        assert stage.net is None and mapped_bytes("weights.safetensors") < SIZE * SIZE * 4 * 0.1
    np.testing.assert_array_equal(*results)
