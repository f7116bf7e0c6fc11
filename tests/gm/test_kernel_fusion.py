"""Fused kernels: where they cannot be, nothing happens; where they can, the results and the folders stay the same."""

import os
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm import kernel_fusion
from gm.kernel_fusion import fused_kernels_inside
from gm.kernels import GELU


@pytest.fixture
def graph_mode(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(kernel_fusion.CACHE_PATH, raising=False)
    monkeypatch.chdir(tmp_path)
    ms.set_context(mode=ms.GRAPH_MODE)  # the session's conftest restores it


def test_a_network_of_fused_kernels(graph_mode, tmp_path):
    if kernel_fusion.obstacle():
        pytest.skip(kernel_fusion.obstacle())
    x = Tensor(np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32))
    plain = GELU()(x).asnumpy()
    with fused_kernels_inside() as fused:
        assert fused and Path.cwd() != tmp_path
        together = GELU()(x).asnumpy()
    np.testing.assert_allclose(together, plain, atol=2e-6)
    assert any(name.endswith(".so") for _, _, names in os.walk(tmp_path / "cache") for name in names)
    assert Path.cwd() == tmp_path and os.listdir(tmp_path) == ["cache"]
    assert kernel_fusion.CACHE_PATH not in os.environ and not ms.get_context("enable_graph_kernel")


@pytest.mark.parametrize("missing", ["mode", "compiler", "module", "folder"])
def test_without_what_it_needs_nothing_changes(graph_mode, tmp_path, monkeypatch, missing):
    if missing == "mode":
        ms.set_context(mode=ms.PYNATIVE_MODE)
    elif missing == "compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif missing == "module":
        monkeypatch.setattr(kernel_fusion, "find_spec", lambda name: None)
    else:
        (tmp_path / "cache").write_text("a file in the folder's place")
    with fused_kernels_inside() as fused:
        assert not fused and Path.cwd() == tmp_path and not ms.get_context("enable_graph_kernel")
