import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import SessionLog

from gm.training.callbacks import RETRY_SECONDS, TensorBoardLog
from tests.gm.training.events import read_events

PROJECT = Path(__file__).parents[3]


def test_scalars_and_animations_are_readable_at_once(tmp_path):
    log = TensorBoardLog(tmp_path / "sub" / "tensorboard")
    before = time.time()
    log.on_start(SimpleNamespace(step=7))
    log.on_step(8, {"loss": 0.5, "loss_sigma/0.1-1": 0.25})
    log.animation(8, "validation/a", b"GIF89a", 12, 34)
    start, point, animation = read_events(tmp_path / "sub" / "tensorboard")  # before it is closed
    assert (start.step, start.session_log.status) == (8, SessionLog.START)
    assert {value.tag: value.simple_value for value in point.summary.value} == {"loss": 0.5, "loss_sigma/0.1-1": 0.25}
    assert point.step == 8 and before <= point.wall_time <= time.time()
    value = animation.summary.value[0]
    assert (value.tag, value.image.encoded_image_string) == ("validation/a", b"GIF89a")
    assert (value.image.height, value.image.width, value.image.colorspace) == (12, 34, 3)


def test_nothing_is_written_before_the_first_event(tmp_path):
    TensorBoardLog(tmp_path / "tensorboard").on_end(0)
    assert not (tmp_path / "tensorboard").exists()


class FullDisk:
    def __init__(self, *args):
        pass

    def write_event(self, event):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        self.write_event(None)


def test_after_a_failure_curves_go_on_in_another_file(tmp_path, caplog, monkeypatch):
    log = TensorBoardLog(tmp_path)
    log.on_step(1, {"loss": 1.0})
    log._writer = FullDisk()
    with caplog.at_level(logging.WARNING):
        log.on_step(2, {"loss": 2.0})
        log.on_step(3, {"loss": 3.0})
        assert caplog.text.count("training goes on") == 1 and "no room left on the disk" in caplog.text
        monkeypatch.setattr("gm.training.callbacks.time", SimpleNamespace(time=lambda: time.time() + RETRY_SECONDS))
        with monkeypatch.context() as patch:
            patch.setattr("gm.training.callbacks.EventsWriter", FullDisk)
            log.on_step(4, {"loss": 4.0})
        assert caplog.text.count("training goes on") == 1
        later = SimpleNamespace(time=lambda: time.time() + 2 * RETRY_SECONDS)
        monkeypatch.setattr("gm.training.callbacks.time", later)
        log.on_step(5, {"loss": 5.0})
    assert sorted(event.step for event in read_events(tmp_path)) == [1, 5]


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="needs a system with process limits")
def test_a_full_disk_hangs_nothing(tmp_path):
    """A file-size limit stands in for the disk; far more events than any queue holds are written."""
    program = f"""
import resource, signal
from gm.training.callbacks import TensorBoardLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
log = TensorBoardLog({str(tmp_path)!r})
for step in range(300):
    log.on_step(step, {{"loss": 1.0}})
log.on_end(300)
print("done")
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "done\n" and result.returncode == 0
    assert result.stderr.count("training goes on") == 1 and len(list(tmp_path.iterdir())) == 1
