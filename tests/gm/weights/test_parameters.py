"""Weights from a file into a network: shared with the memory map where the type allows, cast where it does not."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from gm.networks.layers import Linear
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from gm.weights.parameters import load_weights, parameter_shapes


@pytest.fixture(params=[np.float32, np.float16], ids=["fp32", "fp16"])
def file(request, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.standard_normal((5, 3)), "a.bias": rng.standard_normal(5)}
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, {name: value.astype(request.param) for name, value in tensors.items()})
    return path


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_a_layer_computes_with_the_file_s_values(file, dtype):
    with no_init_parameters():
        layer = Linear(3, 5)
    with open_checkpoint(file) as source:
        load_weights(layer, source, "a.", dtype)
        weight, bias = (np.array(source.read(f"a.{kind}"), np.float32) for kind in ("weight", "bias"))
    assert layer.weight.dtype == dtype
    assert layer.bias.dtype == dtype
    x = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    out = layer(Tensor(x).astype(dtype)).asnumpy().astype(np.float32)
    np.testing.assert_allclose(out, x @ weight.T + bias, atol=1e-6 if dtype == ms.float32 else 1e-2)


def test_fp32_weights_are_the_memory_map_itself(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, {"weight": np.ones((5, 3), np.float32), "bias": np.zeros(5, np.float32)})
    with no_init_parameters():
        layer = Linear(3, 5)
    with open_checkpoint(path) as source:
        load_weights(layer, source)
        assert np.shares_memory(layer.weight.asnumpy(), source.read("weight"))


def test_only_what_is_needed_is_loaded(file):
    with no_init_parameters():
        layer = Linear(3, 5)
    with open_checkpoint(file) as source:
        load_weights(layer, source, "a.", needed=lambda name: name == "bias")
    assert not layer.bias.has_init
    assert layer.weight.has_init  # still without values


def test_parameter_shapes_carry_the_prefix():
    assert parameter_shapes(Linear(3, 5), "p.") == {"p.weight": (5, 3), "p.bias": (5,)}
