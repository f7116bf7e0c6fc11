"""`convert.py` at small width: single files of every kind and back, bit for bit; types and metadata."""

import json
import logging
import os

import mindspore as ms
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gm.errors import UserError
from gm.weights.checkpoint import file_sha256, open_checkpoint, save_safetensors
from gm.weights.names import to_reference
from tests.svd_tools.small_model import assert_same_tensors, read_all, run_convert


def test_safetensors_to_ckpt_and_back(small, tmp_path):
    run_convert(small[0], tmp_path)
    loaded = ms.load_checkpoint(str(tmp_path / "small.ckpt"))
    assert loaded.keys() == {to_reference(name) for name in small[1]}
    assert_same_tensors({n: loaded[to_reference(n)].asnumpy() for n in small[1]}, small[1])
    run_convert(tmp_path / "small.ckpt", tmp_path, "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "small.safetensors"), small[1])


def test_a_ckpt_that_mindspore_saved_is_converted(small, tmp_path):
    saved = [{"name": to_reference(n), "data": ms.Tensor(a)} for n, a in small[1].items()]
    ms.save_checkpoint(saved, str(tmp_path / "theirs.ckpt"))
    run_convert(tmp_path / "theirs.ckpt", tmp_path, "--to=safetensors")
    assert_same_tensors({n: t.numpy() for n, t in load_file(tmp_path / "theirs.safetensors").items()}, small[1])


def test_safetensors_to_diffusers_and_back(small, folder, tmp_path):
    run_convert(folder, tmp_path, "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "small.safetensors"), small[1])


def test_one_content_gives_one_hash(small, folder, tmp_path):
    run_convert(folder, tmp_path / "a", "--to=safetensors")
    run_convert(small[0], tmp_path / "b", "--to=safetensors")
    hashes = {open_checkpoint(tmp_path / x / "small.safetensors").metadata["data_sha256"] for x in "ab"}
    assert len(hashes) == 1


@pytest.mark.parametrize("wrapper", ["state_dict", None])
def test_a_pickle(small, tmp_path, wrapper):
    state = {name: torch.from_numpy(array) for name, array in small[1].items()}
    torch.save({wrapper: state, "global_step": 7} if wrapper else state, tmp_path / "svd.pt")
    run_convert(tmp_path / "svd.pt", tmp_path, "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "svd.safetensors"), small[1])


def test_half_precision(small, tmp_path):
    run_convert(small[0], tmp_path, "--to=ckpt", "--dtype=fp16")
    assert_same_tensors(read_all(tmp_path / "small_fp16.ckpt"), {n: a.astype(np.float16) for n, a in small[1].items()})


def test_bfloat16_to_and_from_safetensors_without_loss(small, tmp_path):
    run_convert(small[0], tmp_path, "--to=safetensors", "--dtype=bf16")
    bf16 = load_file(tmp_path / "small_bf16.safetensors")
    for name, array in small[1].items():
        assert torch.equal(bf16[name], torch.from_numpy(array).bfloat16())
    run_convert(tmp_path / "small_bf16.safetensors", tmp_path / "d", "--to=diffusers")
    run_convert(tmp_path / "d" / "small_bf16", tmp_path / "b", "--to=safetensors")
    back = load_file(tmp_path / "b" / "small_bf16.safetensors")
    assert back.keys() == bf16.keys() and all(torch.equal(back[name], bf16[name]) for name in bf16)
    run_convert(tmp_path / "small_bf16.safetensors", tmp_path, "--to=ckpt")
    loaded = ms.load_checkpoint(str(tmp_path / "small_bf16.ckpt"))
    first = next(iter(bf16))
    assert loaded[to_reference(first)].dtype == ms.bfloat16
    np.testing.assert_array_equal(loaded[to_reference(first)].float().asnumpy(), bf16[first].float().numpy())


def test_hashes_and_settings_are_in_the_metadata(small, folder, tmp_path, capsys):
    source = tmp_path / "in" / "small.safetensors"
    source.parent.mkdir()
    save_safetensors(source, small[1], {"note": "mine"})
    run_convert(source, tmp_path, "--to=safetensors")
    with open_checkpoint(tmp_path / "small.safetensors") as result:
        assert result.metadata["source"] == "small.safetensors" and result.metadata["note"] == "mine"
        assert result.metadata["source_sha256"] == file_sha256(source)
        assert result.metadata["data_sha256"] in capsys.readouterr().out
        assert result.metadata["format"] == "pt"
    run_convert(folder, tmp_path / "b", "--to=safetensors")
    with open_checkpoint(tmp_path / "b" / "small.safetensors") as result:
        hashes = json.loads(result.metadata["source_sha256"])
        name = "small/unet/diffusion_pytorch_model.safetensors"
        assert len(hashes) == 4 and hashes[name] == file_sha256(folder.parent / name)


def test_dry_run_prints_the_map_and_writes_nothing(small, tmp_path, capsys):
    run_convert(small[0], tmp_path / "out", "--to=diffusers", "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "out").exists()
    assert (
        "unet/diffusion_pytorch_model.safetensors: conv_in.weight F32 (32, 8, 3, 3) <- "
        "small.safetensors: model.diffusion_model.input_blocks.0.0.weight"
    ) in lines
    assert lines[-1].startswith(f"would write {tmp_path / 'out' / 'small'}")


def test_not_a_number_is_refused_by_name_and_written_if_asked_for(small, tmp_path, caplog):
    weights = dict(small[1])
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    save_safetensors(tmp_path / "nan.safetensors", weights)
    with pytest.raises(
        UserError, match=f"^{name} .* has {weights[name].size} NaN and 0 infinite .* nothing is written"
    ):
        run_convert(tmp_path / "nan.safetensors", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    with caplog.at_level(logging.WARNING):
        run_convert(tmp_path / "nan.safetensors", tmp_path, "--allow_nonfinite=true")
    assert [name in record.message for record in caplog.records] == [True]
    assert (tmp_path / "nan.ckpt").exists()
