"""Fused kernels: where they cannot be, nothing happens; where they can, the results and the folders stay the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gm.backend import kernel_fusion, operators
from gm.backend.kernel_fusion import fused_kernels, worth_fusing
from gm.backend.operators import inference, training
from gm.backend.user_cache import CACHE_PATH
from gm.networks.layers import Linear
from modules.video_blocks import SpatialVideoTransformer, VideoResBlock

PROJECT = Path(__file__).parents[3]
WIDTH, FRAMES = 64, 3  # two channels in each group of a norm
IN_A_PROCESS_OF_ITS_OWN = """
import os

import mindspore as ms
import numpy as np

from gm.backend import operators
from gm.backend.user_cache import CACHE_PATH

ms.set_context(mode=ms.GRAPH_MODE)
with operators.inference(compiled=True, fuse_kernels=True):
    assert operators.current.fused
    operators.current.gelu_cell(ms.Tensor(np.ones((64, 96), np.float32)))
assert CACHE_PATH not in os.environ and not ms.get_context("enable_graph_kernel")
"""


@pytest.fixture
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)  # the session's conftest restores it


@pytest.fixture
def able(graph_mode):
    if kernel_fusion.obstacle():
        pytest.skip(kernel_fusion.obstacle())


class MeanSquareGradients(nn.Cell):
    """The gradients of the output's mean square by every parameter of a block."""

    def __init__(self, block):
        super().__init__(auto_prefix=False)
        self.block = block
        self.gradients = ms.grad(self.mean_square, None, weights=ms.ParameterTuple(block.trainable_params()))

    def mean_square(self, *inputs):
        return ops.square(self.block(*inputs)).mean()

    def construct(self, *inputs):
        return self.gradients(*inputs)


def random_block(block):
    """The block with random weights, and its inputs."""
    rng = np.random.default_rng(0)
    net = block(WIDTH, 16, WIDTH) if block is VideoResBlock else block(WIDTH, 2, WIDTH // 2, 16)
    for name, parameter in net.parameters_and_names():
        parameter.name = name
        parameter.set_data(Tensor(0.3 * rng.standard_normal(parameter.shape).astype(np.float32)))
    shapes = ((2 * FRAMES, WIDTH, 4, 6), (2, 16), (2, 1, 16))
    return net, [Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


@pytest.mark.parametrize("block", [VideoResBlock, SpatialVideoTransformer])
def test_a_block_of_fused_kernels(able, block):
    net, inputs = random_block(block)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    plain = net(*inputs).asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)
    with inference(compiled=True, fuse_kernels=True):
        assert operators.current.fused
        fused = net(*inputs).asnumpy()
    assert np.abs(fused - plain).max() <= 2e-5 * np.abs(plain).max()


@pytest.mark.parametrize("block", [VideoResBlock, SpatialVideoTransformer])
def test_gradients_of_a_block_of_fused_kernels(able, block):
    net, inputs = random_block(block)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    plain = [gradient.asnumpy() for gradient in MeanSquareGradients(net)(*inputs)]
    ms.set_context(mode=ms.GRAPH_MODE)
    with training(fuse=True):
        fused = [gradient.asnumpy() for gradient in MeanSquareGradients(net)(*inputs)]
    largest = max(np.abs(gradient).max() for gradient in plain)
    for parameter, have, want in zip(net.trainable_params(), fused, plain):
        size = max(np.abs(want).max(), 1e-3 * largest)  # a sum smaller than that has lost its digits
        assert np.abs(have - want).max() <= 1e-3 * size, parameter.name


def test_kernels_are_kept_and_nothing_else_stays(able, tmp_path):
    here, cache = tmp_path / "here", tmp_path / "cache"
    here.mkdir()
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(PROJECT)}
    environment.pop(CACHE_PATH, None)
    subprocess.run([sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], cwd=here, env=environment, check=True)
    assert any(name.endswith(".so") for _, _, names in os.walk(cache) for name in names)
    assert not any(here.iterdir())


@pytest.mark.parametrize("missing", ["mode", "compiler", "module", "folder"])
def test_without_what_it_needs_nothing_changes(graph_mode, tmp_path, monkeypatch, missing):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if missing == "mode":
        ms.set_context(mode=ms.PYNATIVE_MODE)
    elif missing == "compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif missing == "module":
        monkeypatch.setattr(kernel_fusion, "find_spec", lambda name: None)
    else:
        (tmp_path / "cache").write_text("a file in the folder's place")
    with fused_kernels() as fused:
        assert not fused and Path.cwd() == tmp_path
        assert not ms.get_context("enable_graph_kernel")


def test_only_large_networks_are_worth_it(graph_mode):
    assert not worth_fusing(Linear(100, 100))
    assert worth_fusing(Linear(10_000, 10_000))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    assert not worth_fusing(Linear(10_000, 10_000))
