"""Checkpoints: whole or absent, exact, for the same run only, the newest few kept."""

import json
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gm.errors import UserError
from gm.training.checkpoints import (
    NUMBERS,
    TENSORS,
    CheckpointFolder,
    check_fingerprint,
    read_numbers,
    read_tensors,
    write_checkpoint,
)
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from gm.weights.parameters import FullModelWriter

NAMES = ("weight.a", "adam_m.a", "adam_v.a", "average.a")
NUMBERS_OF_RUN = {
    "step": 7, "updates": 7, "skipped": 0, "nonfinite": 0,
    "loss_scale": {"value": 1.0, "finite_updates": 0}, "identity": {"--environment.seed": 1},
}  # fmt: skip


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {name: Parameter(Tensor(rng.standard_normal((2, 3)).astype(np.float32)), name) for name in NAMES}


@pytest.fixture
def writer(tmp_path):
    base = {"net.a": np.zeros((2, 3), np.float16), "other.b": np.arange(5, dtype=np.float16)}
    save_safetensors(tmp_path / "base.safetensors", base)
    return FullModelWriter(tmp_path / "base.safetensors", "net.")


def test_everything_comes_back_bit_for_bit_in_memory_of_its_own(tmp_path, writer):
    saved, other = tensors(0), tensors(1)
    path = tmp_path / "checkpoints" / "step_00000007"
    write_checkpoint(path, saved, NUMBERS_OF_RUN, writer)
    assert read_numbers(path)["step"] == 7
    read_tensors(path, other, {})
    for name in NAMES:
        assert other[name].asnumpy().tobytes() == saved[name].asnumpy().tobytes()
    ms.ops.assign_add(other["weight.a"], Tensor(np.ones((2, 3), np.float32)))  # not into the file's map
    assert sorted(os.listdir(path)) == ["model.safetensors", NUMBERS, TENSORS]


def test_the_model_has_the_averages_in_fp32_and_all_else_untouched(tmp_path, writer):
    saved = tensors()
    path = tmp_path / "step_00000007"
    write_checkpoint(path, saved, NUMBERS_OF_RUN, writer)
    with open_checkpoint(path / "model.safetensors") as source:
        assert np.array_equal(source.read("net.a"), saved["average.a"].asnumpy())
        assert source.info["other.b"].dtype == "F16" and list(source.read("other.b")) == list(range(5))
        assert source.metadata["step"] == "7" and set(source.info) == {"net.a", "other.b"}


def test_without_an_average_the_model_has_the_weights(tmp_path, writer):
    saved = {name: tensor for name, tensor in tensors().items() if not name.startswith("average.")}
    write_checkpoint(tmp_path / "step_1", saved, NUMBERS_OF_RUN, writer)
    with open_checkpoint(tmp_path / "step_1" / "model.safetensors") as source:
        assert np.array_equal(source.read("net.a"), saved["weight.a"].asnumpy())


def test_the_base_may_disappear_while_training(tmp_path, writer):
    (tmp_path / "base.safetensors").unlink()
    write_checkpoint(tmp_path / "step_1", tensors(), NUMBERS_OF_RUN, writer)
    assert (tmp_path / "step_1" / "model.safetensors").exists()


def test_a_failure_leaves_nothing_behind(tmp_path, writer, monkeypatch):
    class Broken:
        shape = (2, 3)

        def asnumpy(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="no room left"):
        write_checkpoint(tmp_path / "c" / "step_1", {**tensors(), "adam_v.a": Broken()}, NUMBERS_OF_RUN, writer)
    assert list((tmp_path / "c").iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda folder: os.terminal_size((0, 0)) and type("U", (), {"free": 10})())
    with pytest.raises(UserError, match="no room for the checkpoint"):
        write_checkpoint(tmp_path / "c" / "step_1", tensors(), NUMBERS_OF_RUN, writer)


def test_another_model_is_refused(tmp_path, writer):
    write_checkpoint(tmp_path / "step_1", tensors(), NUMBERS_OF_RUN, writer)
    other = {**tensors(), "weight.b": Parameter(Tensor(np.ones(2, np.float32)), "b")}
    with pytest.raises(UserError, match="--train.resume: .* is of another model: 1 tensors differ, .* weight.b"):
        read_tensors(tmp_path / "step_1", other, {})
    reshaped = {**tensors(), "weight.a": Parameter(Tensor(np.ones((3, 2), np.float32)), "a")}
    with pytest.raises(UserError, match="of another model"):
        read_tensors(tmp_path / "step_1", reshaped, {})


def test_a_share_of_the_tensors_can_be_read(tmp_path, writer):
    saved = tensors()
    write_checkpoint(tmp_path / "step_1", saved, NUMBERS_OF_RUN, writer)
    share = {name: tensor for name, tensor in tensors(1).items() if name != "adam_m.a"}
    read_tensors(tmp_path / "step_1", share, {"adam_m.a": (2, 3)})
    assert np.array_equal(share["adam_v.a"].asnumpy(), saved["adam_v.a"].asnumpy())


def test_another_run_is_refused_by_the_name_of_what_differs(tmp_path):
    check_fingerprint(tmp_path, {"--a": [1, 2], "--b": None}, {"--a": (1, 2), "--b": None})
    with pytest.raises(UserError, match="--train.resume: .* with --b=1, this one has 2; use the same"):
        check_fingerprint(tmp_path, {"--a": 0, "--b": 1}, {"--a": 0, "--b": 2})
    with pytest.raises(UserError, match="--c=null, this one has true"):
        check_fingerprint(tmp_path, {}, {"--c": True})


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"format": 99, "step": 1}'])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / NUMBERS).write_text(text)
    with pytest.raises(UserError, match="--train.resume"):
        read_numbers(tmp_path)


# ----------------------------------------------------------------------------------------------- the folder


def fake(folder, *steps):
    for step in steps:
        folder.path(step).mkdir(parents=True)
        (folder.path(step) / NUMBERS).write_text(json.dumps({"step": step}))


def test_the_newest_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    fake(folder, 5, 100, 20)
    folder.prune()
    assert [path.name for path in folder.all()] == ["step_00000020", "step_00000100"]
    assert sorted(os.listdir(folder.folder)) == ["step_00000020", "step_00000100"]
    CheckpointFolder(tmp_path, keep=0).prune()
    assert len(folder.all()) == 2


def test_older_checkpoints_make_room_for_the_last_one_but_the_newest_stays(tmp_path, caplog):
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        folder.path(step).mkdir(parents=True)
    assert folder.give_up_oldest("no room left on the disk") and folder.give_up_oldest("no room left on the disk")
    assert folder.all() == [folder.path(3)] and not folder.give_up_oldest("no room left on the disk")
    assert "gave up the old checkpoint" in caplog.text and "no room left on the disk" in caplog.text


def test_renamed_folders_are_left_alone(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    fake(folder, 10, 20)
    for name in ("step_00000005_best", "step_best"):
        (folder.folder / name).mkdir()
    folder.prune()
    assert sorted(os.listdir(folder.folder)) == ["step_00000005_best", "step_00000020", "step_best"]
    assert folder.newest() == folder.path(20)


def test_what_resume_means(tmp_path):
    folder = CheckpointFolder(tmp_path / "run")
    assert folder.find("auto") is None and folder.find("") is None
    fake(folder, 10, 20)
    assert folder.find("auto") == folder.find(str(tmp_path / "run")) == folder.path(20)
    with pytest.raises(UserError, match="--train.output_dir: .* an earlier run; --train.resume=auto"):
        folder.find("")
    with pytest.raises(UserError, match="not the newest checkpoint .* step_00000020"):
        folder.find(str(folder.path(10)))
    assert CheckpointFolder(tmp_path / "other").find(str(folder.path(10))) == folder.path(10)
    for nowhere in (tmp_path / "nowhere", folder.folder / "step_00000030", tmp_path):
        with pytest.raises(UserError, match="--train.resume: .* neither a checkpoint's folder"):
            CheckpointFolder(tmp_path / "other").find(str(nowhere))


def test_one_run_at_a_time_and_no_remains(tmp_path):
    folder = CheckpointFolder(tmp_path)
    fake(folder, 10)
    half = folder.folder / ".step_00000020.tmp-123"
    half.mkdir()
    (half / TENSORS).write_bytes(b"half")
    with folder.locked():
        assert folder.all() == [folder.path(10)] and not half.exists()
        code = (
            "import sys; from pathlib import Path; from gm.training.checkpoints import CheckpointFolder\n"
            "with CheckpointFolder(Path(sys.argv[1])).locked(): pass"
        )
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert "another run is writing to" in other.stderr
    with CheckpointFolder(tmp_path).locked():
        pass
