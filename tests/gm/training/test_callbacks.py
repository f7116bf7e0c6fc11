import io
import json
import logging
import math
import sys
from types import SimpleNamespace

import mindspore as ms
import pytest
import yaml

from gm.errors import UserError
from gm.training.callbacks import (
    ConfigFile,
    LogLines,
    MetricsFile,
    ProgressLine,
    TensorBoardLog,
    WandbLog,
    keep_training,
)
from tests.gm.training.events import read_events
from train import BesideBars

METRICS = {"loss": 0.123456, "loss_sigma/0-1": 0.5, "lr": 1e-5, "skipped_updates": 0.0}


def trainer(folder, step=0, total=10):
    return SimpleNamespace(step=step, total_steps=total, output_dir=folder)


def progress(tmp_path, monkeypatch, skipped=0.0, **options):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    line = ProgressLine(**options)
    line.on_start(trainer(tmp_path, step=4))
    for step in (5, 6):
        line.on_step(step, {**METRICS, "skipped_updates": skipped})
    line.on_end(6)
    return stream.getvalue()


def test_the_line_shows_step_loss_and_time_left(tmp_path, monkeypatch):
    text = progress(tmp_path, monkeypatch, disable=False).split("\r")[-1]
    assert "6/10" in text and "loss=0.1235" in text and "lr=1.00e-05" in text and "<" in text and "skipped" not in text
    assert "skipped=3" in progress(tmp_path, monkeypatch, skipped=3.0, disable=False)


def test_the_line_is_silent_without_a_terminal(tmp_path, monkeypatch):
    assert progress(tmp_path, monkeypatch) == ""


def test_lines_of_the_log_and_the_bar_leave_each_other_alone(tmp_path, monkeypatch):
    """What a terminal shows: each line of the log by itself, and below them the bar."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    line, logger = ProgressLine(disable=False), logging.Logger("run")
    logger.addHandler(BesideBars())
    line.on_start(trainer(tmp_path))
    for step in (1, 2):
        line.on_step(step, METRICS)
        logger.warning("a line of step %d", step)
    line.on_end(2)
    shown = [text.rsplit("\r", 1)[-1].rstrip() for text in stream.getvalue().split("\n")]
    assert shown[:2] == ["a line of step 1", "a line of step 2"] and shown[2].startswith("training:")


def test_the_log_tells_the_mean_the_pace_and_the_time_left(tmp_path, caplog):
    lines = LogLines(every=2)
    figures = {"grad_norm": 1.0, "lr": 1e-3, "memory_gb": 2.0}
    ms.set_context(mode=ms.GRAPH_MODE)
    with caplog.at_level(logging.INFO):
        lines.on_start(trainer(tmp_path, total=64))
        for step, (loss, seconds) in enumerate(((1.0, 70.0), (2.0, 1.5), (3.0, 2.5), (6.0, 2.0)), 1):
            lines.on_step(step, {**figures, "loss": loss, "step_seconds": seconds})
        lines.on_report(4, {"validation/loss": 0.25, "validation/psnr_still": 15.0})
    told = [record.getMessage() for record in caplog.records]
    assert told[1].startswith("compiling with the first step, about a minute")
    assert told[2] == "compiled: the first step took 70 s"
    assert "step 4 of 64: loss 6.0000, mean of the last 4 3.0000" in told[4] and "2.00 s a step, 02:00 left" in told[4]
    assert told[5] == "validation at step 4: loss 0.25, psnr still 15"


def test_figures_of_steps_and_of_validations_are_files_and_curves(tmp_path):
    for start in (0, 1):  # the second run goes on after step 1
        callbacks = (MetricsFile(), TensorBoardLog(tmp_path / "curves"))
        for callback in callbacks:
            callback.on_start(trainer(tmp_path, step=start))
            callback.on_step(start + 1, {"loss": float(start)})
            callback.on_report(start + 1, {"validation/loss": 5.0 + start})
            callback.on_step(start + 2, {"loss": math.nan})
            callback.on_end(start + 2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": None}]
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "validation/loss": 5.0}, {"step": 2, "validation/loss": 6.0}]
    tags = {value.tag for event in read_events(tmp_path / "curves") for value in event.summary.value}
    assert tags == {"loss", "validation/loss"}


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    """The same name after a resumption; figures on the disk."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 2):
        callback = WandbLog("project", {"train": {"lr": 1e-5}})
        callback.on_start(trainer(tmp_path, step=start))
        callback.on_step(start + 1, METRICS)
        callback.on_report(start + 1, {"validation/loss": 5.0})
        callback.on_end(start + 1)
    wandb.teardown()  # which writes all that its own process still holds
    name = (tmp_path / "wandb_id.txt").read_text()
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert files and all(b"validation/loss" in file.read_bytes() for file in files)


def test_weights_and_biases_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^--train\.wandb: wandb is not installed; pip install wandb"):
        WandbLog("project", {})


def test_a_run_that_fails_before_it_starts_ends_quietly():
    ProgressLine().on_end(0)


def test_curves_go_on_after_a_restart(tmp_path):
    callback = TensorBoardLog(tmp_path)
    callback.on_start(trainer(tmp_path, step=4))
    for step in range(5, 10):
        callback.on_step(step, METRICS)
    callback.on_end(9)
    start, *points = read_events(tmp_path)
    assert start.step == 5 and [point.step for point in points] == [5, 6, 7, 8, 9]
    values = {value.tag: value.simple_value for value in points[0].summary.value}
    assert values == pytest.approx(METRICS)


def test_the_configuration_is_saved_and_a_former_one_kept(tmp_path):
    first = {"train": {"lr": 1e-5, "betas": [0.9, 0.999], "title": "größer"}, "seed": None}
    for step, config in ((0, first), (3, first), (7, {"seed": 1})):
        ConfigFile(config).on_start(trainer(tmp_path, step=step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.yaml", "config_until_step_7.yaml"]
    assert yaml.safe_load((tmp_path / "config_until_step_7.yaml").read_text(encoding="utf-8")) == first
    assert list(yaml.safe_load((tmp_path / "config.yaml").read_text())) == ["seed"]


def test_a_configuration_that_cannot_be_saved_stops_nothing(tmp_path, caplog):
    (tmp_path / "config.yaml").mkdir()
    with caplog.at_level(logging.WARNING):
        ConfigFile({"a": 1}).on_start(trainer(tmp_path))
    assert "config.yaml failed" in caplog.text and "training goes on" in caplog.text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "no room left on the disk"),
        (UserError("cannot write a.mp4: no room left on the disk"), "cannot write a.mp4"),
        (MemoryError(), "out of memory"),
        (RuntimeError("Memory isn't enough and alloc failed"), "out of memory"),
    ],
)
def test_want_of_room_memory_or_permission_stops_nothing(error, told, caplog):
    with caplog.at_level(logging.WARNING), keep_training("the video"):
        raise error
    assert f"the video failed: {told}" in caplog.text and caplog.text.strip().endswith("training goes on")


@pytest.mark.parametrize("error", [TypeError("x"), ValueError("x"), RuntimeError("x"), KeyboardInterrupt()])
def test_errors_in_the_program_and_interruptions_pass(error):
    with pytest.raises(type(error)), keep_training("the video"):
        raise error
