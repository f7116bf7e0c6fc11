import io
import logging
import sys
from types import SimpleNamespace

import pytest
import yaml

from gm.errors import UserError
from gm.training.callbacks import ConfigFile, ProgressLine, TensorBoardLog, keep_training
from tests.gm.training.events import read_events

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
