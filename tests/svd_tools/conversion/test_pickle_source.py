"""Pickles: their tensors are read, and nothing in them is run."""

import os

import numpy as np
import pytest
import torch

from gm.errors import UserError
from gm.weights.tensor_source import TensorInfo, decode
from svd_tools.conversion.weight_files import read_pickle

NORM = "model.diffusion_model.out.0.weight"


def read(path):
    return {name: decode(t.load(), t.info, name) for name, t in read_pickle(path, "label").items()}


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {NORM: torch.randn(64, 100), "half": torch.randn(5).half(), "scalar": torch.tensor(2.5)}


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_tensors_are_read(tmp_path, state, wrapper, new_format):
    content = {wrapper: state, "epoch": 3} if wrapper else state
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    arrays = read(tmp_path / "a.pt")
    assert arrays.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_a_released_tensor_is_read_again(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    tensor = read_pickle(tmp_path / "a.pt", "label")[NORM]
    before = bytes(tensor.load())
    tensor.release()
    assert bytes(tensor.load()) == before == state[NORM].numpy().tobytes()


def test_views_bfloat16_and_parameters(tmp_path):
    whole = torch.randn(6, 4)
    content = {"t": whole.T, "part": whole[2:4], "bf": whole.bfloat16(), "p": torch.nn.Parameter(whole)}
    torch.save(content, tmp_path / "a.pt")
    arrays = read(tmp_path / "a.pt")
    np.testing.assert_array_equal(arrays["t"], whole.numpy().T)
    np.testing.assert_array_equal(arrays["part"], whole.numpy()[2:4])
    np.testing.assert_array_equal(arrays["bf"], whole.bfloat16().float().numpy())
    np.testing.assert_array_equal(arrays["p"], whole.numpy())
    assert read_pickle(tmp_path / "a.pt", "x")["bf"].info == TensorInfo("BF16", (6, 4))


def test_the_references_names_are_understood(tmp_path):
    torch.save({"model.diffusion_model.out.0.gamma": torch.ones(2)}, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt")) == [NORM]


class Payload:
    """Would create a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_is_refused_and_not_run(tmp_path, new_format):
    content = {"x": torch.ones(2), "y": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match="is refused") as error:
        read_pickle(tmp_path / "a.pt", "label")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_damaged_and_empty_content(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read as a PyTorch file") as error:
        read_pickle(tmp_path / "cut.pt", "label")
    assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no dictionary of tensors"):
        read_pickle(tmp_path / "list.pt", "label")
    torch.save({"z": torch.ones(2, dtype=torch.complex128)}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="complex128"):
        read_pickle(tmp_path / "odd.pt", "label")
