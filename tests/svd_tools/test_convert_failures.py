"""`convert.py` refuses what it cannot convert in one line, and leaves nothing half-written."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gm.weights.checkpoint import save_safetensors
from svd_tools.conversion import targets
from tests.svd_tools.small_model import CONFIG, assert_same_tensors, read_all, refusal, run_convert

ROOT = Path(__file__).resolve().parents[2]
UNET = "model.diffusion_model."


def test_missing_extra_and_misshapen_tensors_are_all_listed(small, tmp_path):
    weights = dict(small[1])
    missing = [name for name in weights if "input_blocks.4." in name]
    for name in missing:
        del weights[name]
    weights["surplus"] = np.ones(3, np.float32)
    weights[UNET + "out.2.bias"] = np.ones((4, 1), np.float32)
    save_safetensors(tmp_path / "a.safetensors", weights)
    message = refusal(tmp_path / "a.safetensors", tmp_path)
    assert all(f"missing: {name} " in message for name in missing)
    assert "extra: surplus (3,)" in message and "out.2.bias is (4, 1), (4,) is wanted" in message
    assert len(message.splitlines()) == len(missing) + 3 and "convert.py" not in message
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_extra_tensors_can_be_left_out(small, tmp_path, caplog):
    save_safetensors(tmp_path / "a.safetensors", {**small[1], "epoch_num": np.array(3)})
    assert "extra: epoch_num" in refusal(tmp_path / "a.safetensors", tmp_path)
    run_convert(tmp_path / "a.safetensors", tmp_path / "out", "--to=safetensors", "--drop_extra")
    assert "epoch_num" in caplog.text
    assert_same_tensors(read_all(tmp_path / "out" / "a.safetensors"), small[1])


def test_a_folder_with_a_foreign_unet(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    file = tmp_path / "bad" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    del tensors["conv_out.bias"]
    save_file(tensors, file)
    message = refusal(tmp_path / "bad", tmp_path / "out")
    assert "unet/conv_in.weight is (32, 4, 3, 3), (32, 8, 3, 3) is wanted" in message
    assert "missing: unet/conv_out.bias (4,)" in message and "; shape: unet/conv_in" in message


def test_wrong_architecture(small, tmp_path):
    save_safetensors(tmp_path / "sd.safetensors", {"cond_stage_model.x": np.ones(2, np.float32)})
    assert "another architecture" in refusal(tmp_path / "sd.safetensors", tmp_path).splitlines()[0]
    assert "of another shape" in refusal(small[0], tmp_path, config=ROOT / "configs" / "svd_tiny.yaml")


def test_diffusers_cannot_have_norms_of_other_groups(small, tmp_path):
    config = tmp_path / "few_groups.yaml"
    config.write_text(f"base: {CONFIG}\nmodel: {{params: {{network_config: {{params: {{num_groups: 16}}}}}}}}\n")
    message = refusal(small[0], tmp_path, "--to=diffusers", config=config)
    assert "32 groups only" in message and "num_groups=16" in message


def test_a_part_alone_asks_for_a_base_and_a_whole_refuses_one(small, tmp_path):
    unet = {name: array for name, array in small[1].items() if name.startswith(UNET)}
    save_safetensors(tmp_path / "unet.safetensors", unet)
    message = refusal(tmp_path / "unet.safetensors", tmp_path)
    assert "only the unet" in message and "--base" in message
    assert "leave --base out" in refusal(small[0], tmp_path, f"--base={small[0]}")


def test_unusable_sources(small, tmp_path):
    assert "there is no checkpoint" in refusal(tmp_path / "no.safetensors", tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(small[0].read_bytes()[:-100])
    assert "truncated" in refusal(tmp_path / "cut.safetensors", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no diffusers folder" in refusal(tmp_path / "empty", tmp_path)
    (tmp_path / "unet").mkdir()
    assert "holds no weights" in refusal(tmp_path, tmp_path / "out")


def test_nothing_is_overwritten(small, tmp_path):
    run_convert(small[0], tmp_path)
    before = (tmp_path / "small.ckpt").read_bytes()
    assert "exists already" in refusal(small[0], tmp_path)
    assert (tmp_path / "small.ckpt").read_bytes() == before
    assert "exists already" in refusal(small[0], small[0].parent, "--to=safetensors")


def test_no_room_and_unwritable_targets(small, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "--out_dir" in refusal(small[0], tmp_path / "file")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert "no room" in refusal(small[0], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("target", ["ckpt", "diffusers"])
def test_the_disk_fills_up_while_writing(small, tmp_path, target):
    """A limit on file sizes stands in for a full disk: the write fails half-way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        message = refusal(small[0], tmp_path, f"--to={target}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith("cannot write") and "\n" not in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("target", ["ckpt", "diffusers"])
def test_an_interrupted_run_leaves_nothing(small, tmp_path, monkeypatch, number, target):
    """The signal comes while the 50th tensor is written."""
    calls = []

    def signal_at_50(raw, info):
        calls.append(info)
        if len(calls) == 50:
            assert list(tmp_path.glob(".small.tmp-*"))
            os.kill(os.getpid(), number)
        return 0, 0

    handler = signal.getsignal(number)
    monkeypatch.setattr(targets, "count_not_finite", signal_at_50)
    message = refusal(small[0], tmp_path, f"--to={target}")
    assert message == f"interrupted ({number.name}); nothing was written"
    assert len(calls) == 50 and os.listdir(tmp_path) == []
    assert signal.getsignal(number) is handler


def test_the_command_runs_from_another_folder(small, tmp_path):
    command = [sys.executable, str(ROOT / "svd_tools" / "convert.py"), f"--pt_weights_file={small[0]}"]
    command += [f"--config={CONFIG}", "--out_dir=out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith(f"wrote out/small.ckpt: {len(small[1])} tensors")
