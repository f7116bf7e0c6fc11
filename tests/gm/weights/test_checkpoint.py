"""Checkpoint files: what is written is read back bit for bit, by us and by the formats' own libraries."""

import json
import os
import struct

import mindspore as ms
import numpy as np
import psutil
import pytest
import safetensors.numpy
import torch
from mindspore import Tensor
from mindspore.train import serialization

from gm.errors import UserError
from gm.weights import ckpt_file
from gm.weights.checkpoint import file_sha256, open_checkpoint, save_safetensors
from gm.weights.safetensors_file import array_bytes, array_info, write_safetensors
from gm.weights.tensor_source import TensorInfo

NORM = "model.diffusion_model.out.0.weight"


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        NORM: rng.standard_normal(7).astype(np.float32),
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "ints": np.arange(-4, 4),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }


def write_ckpt(path, arrays):
    info = {name: array_info(array) for name, array in arrays.items()}
    return ckpt_file.write_ckpt(path, info, lambda name: array_bytes(arrays[name]))


def assert_same(path, arrays):
    with open_checkpoint(path) as source:
        assert source.info == {name: array_info(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            read = source.read(name)
            assert read.dtype == array.dtype and read.shape == array.shape
            np.testing.assert_array_equal(read, array)
            assert bytes(source.read_raw(name)) == array.tobytes()


# ------------------------------------------------------------------------------------------------ safetensors


def test_safetensors_round_trip(tmp_path, arrays):
    digest = save_safetensors(tmp_path / "a.safetensors", arrays, {"note": "hello"})
    official = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert official.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(official[name], array)
    with open_checkpoint(tmp_path / "a.safetensors") as source:
        assert source.metadata == {"format": "pt", "note": "hello", "data_sha256": digest}
        assert {name: source.read(name).tobytes() for name in arrays} == {n: a.tobytes() for n, a in arrays.items()}


def test_safetensors_of_the_official_writer(tmp_path, arrays):
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors") as source:
        for name, array in arrays.items():
            np.testing.assert_array_equal(source.read(name), array)


def test_data_is_mapped_not_copied_and_read_only(tmp_path, arrays):
    save_safetensors(tmp_path / "a.safetensors", arrays)
    source = open_checkpoint(tmp_path / "a.safetensors")
    first, second = source.read("half"), source.read("half")
    assert np.shares_memory(first, second) and not first.flags.writeable
    source.release("half")
    source.close()
    np.testing.assert_array_equal(first, arrays["half"])  # still mapped


def test_bfloat16_is_widened_exactly(tmp_path):
    from safetensors.torch import save_file

    values = torch.randn(5, 3).to(torch.bfloat16)
    save_file({"x": values}, tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors") as source:
        assert source.info["x"] == TensorInfo("BF16", (5, 3))
        np.testing.assert_array_equal(source.read("x"), values.float().numpy())
        assert bytes(source.read_raw("x")) == values.view(torch.uint8).numpy().tobytes()


def test_bfloat16_arrays_are_saved_as_such(tmp_path):
    array = Tensor([1.5, -2.0], ms.bfloat16).asnumpy()
    if array.dtype.name != "bfloat16":
        pytest.skip("this MindSpore gives bfloat16 as float32")
    save_safetensors(tmp_path / "a.safetensors", {"x": array})
    with open_checkpoint(tmp_path / "a.safetensors") as source:
        assert source.info["x"].dtype == "BF16"
        np.testing.assert_array_equal(source.read("x"), np.float32([1.5, -2.0]))


def test_metadata_filled_in_after_the_data(tmp_path):
    events = []

    def read(name):
        events.append("read")
        return b"1234"

    def late():
        events.append("late")
        return {"source_sha256": "f" * 64}

    info = {"x": TensorInfo("F32", (1,))}
    write_safetensors(tmp_path / "a.safetensors", info, read, {"source_sha256": "0" * 64}, late)
    assert events == ["read", "late"]
    with open_checkpoint(tmp_path / "a.safetensors") as source:
        assert source.metadata["source_sha256"] == "f" * 64
        assert bytes(source.read_raw("x")) == b"1234"


def test_failed_write_leaves_nothing(tmp_path, arrays):
    def read(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "a.safetensors", {"x": TensorInfo("F32", (1,))}, read, {})
    with pytest.raises(KeyboardInterrupt):
        ckpt_file.write_ckpt(tmp_path / "a.ckpt", {"x": TensorInfo("F32", (1,))}, read)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------ MindSpore .ckpt


def test_ckpt_round_trip(tmp_path, arrays):
    write_ckpt(tmp_path / "a.ckpt", arrays)
    assert_same(tmp_path / "a.ckpt", arrays)


def test_ckpt_is_read_by_mindspore(tmp_path, arrays):
    del arrays["empty"]  # MindSpore has no tensor without elements
    write_ckpt(tmp_path / "a.ckpt", arrays)
    loaded = ms.load_checkpoint(str(tmp_path / "a.ckpt"))
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name].asnumpy(), array)


def test_ckpt_is_the_file_that_mindspore_writes(tmp_path, arrays):
    del arrays["empty"]
    ms.save_checkpoint([{"name": n, "data": Tensor(a)} for n, a in arrays.items()], str(tmp_path / "theirs.ckpt"))
    write_ckpt(tmp_path / "ours.ckpt", arrays)
    assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()
    info = {name: array_info(array) for name, array in arrays.items()}
    assert ckpt_file.ckpt_bytes(info) == (tmp_path / "ours.ckpt").stat().st_size


def test_ckpt_of_mindspore_with_extras(tmp_path):
    """Text and number entries, a checksum at the end, and the reference toolkit's names."""
    ms.save_checkpoint(
        [{"name": "model.diffusion_model.out.0.gamma", "data": Tensor(np.ones(4, np.float32))}],
        str(tmp_path / "a.ckpt"), append_dict={"epoch": 3, "note": "hello"}, crc_check=True,
    )  # fmt: skip
    with open_checkpoint(tmp_path / "a.ckpt") as source:
        assert source.info == {NORM: TensorInfo("F32", (4,)), "epoch": TensorInfo("I64", ())}
        assert source.metadata == {"note": "hello"}
        assert source.read("epoch") == 3


def test_tensor_in_slices(tmp_path, monkeypatch):
    """Above 512 MiB a tensor is several values of one tag, in MindSpore's files and in ours."""
    big = {"big": np.arange(1000, dtype=np.float32).reshape(10, 100), "next": np.ones(3, np.float32)}
    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)  # KiB
    monkeypatch.setattr(ckpt_file, "SLICE_BYTES", 1024)
    ms.save_checkpoint([{"name": n, "data": Tensor(a)} for n, a in big.items()], str(tmp_path / "theirs.ckpt"))
    write_ckpt(tmp_path / "ours.ckpt", big)
    assert (tmp_path / "ours.ckpt").read_bytes().count(b"big") == 4
    assert_same(tmp_path / "theirs.ckpt", big)
    assert_same(tmp_path / "ours.ckpt", big)
    np.testing.assert_array_equal(ms.load_checkpoint(str(tmp_path / "ours.ckpt"))["big"].asnumpy(), big["big"])


@pytest.mark.slow
def test_tensor_above_the_slice_and_the_2_gib_limits(tmp_path):
    """One tensor of 2.15 GiB, in five slices."""
    shape = (2200, 256, 1024)
    piece = np.zeros(shape, np.float32)
    piece[0, 0, 0], piece[-1, -1, -1] = 1.5, 2.5
    write_ckpt(tmp_path / "a.ckpt", {"big": piece})
    with open_checkpoint(tmp_path / "a.ckpt") as source:
        read = source.read("big")
        assert read.shape == shape and read[0, 0, 0] == 1.5 and read[-1, -1, -1] == 2.5
    del piece, read
    if psutil.virtual_memory().available > 10e9:  # MindSpore holds the file three times
        loaded = ms.load_checkpoint(str(tmp_path / "a.ckpt"))["big"]
        assert loaded.shape == shape and loaded[0, 0, 0] == 1.5 and loaded[-1, -1, -1] == 2.5


# ------------------------------------------------------------------------------------------------ unusable files


def refusal(path):
    with pytest.raises(UserError) as error:
        open_checkpoint(path)
    line = str(error.value)
    assert str(path) in line and "\n" not in line
    return line


def test_missing_folder_empty(tmp_path):
    assert "there is no checkpoint" in refusal(tmp_path / "no.safetensors")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "empty").touch()
    assert "is empty" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    "content, hint",
    [
        (b"\x00" * 100, "not a checkpoint"),
        (os.urandom(0) + b"\x93NUMPY" + b"x" * 200, "not a checkpoint"),
        (b"\n\nsome text after empty lines\n", "not a MindSpore checkpoint"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"short", "not a checkpoint"),
        (struct.pack("<Q", 5) + b"{nope", "header"),
        (struct.pack("<Q", 9) + b'{"x": 17}', "header"),
    ],
)
def test_garbage(tmp_path, content, hint):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert hint in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_pickle_names_the_converter(tmp_path, legacy):
    torch.save({"x": torch.ones(2)}, tmp_path / "a.safetensors", _use_new_zipfile_serialization=not legacy)
    assert "svd_tools/convert.py --pt_weights_file" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_truncation_anywhere_is_noticed(tmp_path, arrays, suffix):
    path = tmp_path / f"a.{suffix}"
    (save_safetensors if suffix == "safetensors" else write_ckpt)(path, arrays)
    whole = path.read_bytes()
    ends = set()  # a .ckpt cut between two tensors is a .ckpt with fewer tensors, which the list of names tells
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        try:
            with open_checkpoint(path) as source:
                assert len(source.info) < len(arrays)
                ends.add(length)
        except UserError as error:
            assert str(path) in str(error)
    assert len(ends) == (0 if suffix == "safetensors" else len(arrays) - 1)


def test_header_that_contradicts_itself(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "its shape takes 8" in refusal(tmp_path / "a")


def test_eight_bit_floats_are_refused_when_read(tmp_path):
    write_safetensors(tmp_path / "a", {"x": TensorInfo("F8_E8M0", (4,))}, lambda name: bytes(4), {})
    with open_checkpoint(tmp_path / "a") as source, pytest.raises(UserError, match="F8_E8M0"):
        source.read("x")


def test_file_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
