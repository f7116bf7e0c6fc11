"""A stopped or killed command leaves nothing half-written, and nothing at all after the next run."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from data.video_reader import VideoReader
from gm.weights.checkpoint import open_checkpoint
from tests.e2e.training import MODEL, PROJECT, Workplace, checkpoints

MOMENTS = 10
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]
TRAINING = ("--train.checkpoint_every=1", "--train.keep=2", "--train.resume=auto")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("place"))
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place.folder / f"{number}.png")
    return place


def animation(place, out):
    flags = [f"--image={place.folder}", f"--output_dir={out}", f"--SVD.config={MODEL}", "--SVD.sampling_steps=2"]
    flags += [f"--SVD.checkpoint={place.checkpoint}", "--SVD.num_frames=3"]
    return [sys.executable, str(PROJECT / "image_to_video.py"), *flags]


def training(place, out):
    return [sys.executable, str(PROJECT / "train.py"), *place.flags(out, *TRAINING)]


def seconds_of(command):
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def stopped(command, number, seconds):
    """The exit code and the errors of a command that gets a signal after a while, if it has not ended by then."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(number)
        return process.wait(), process.stderr.read()


def assert_in_good_order(code, errors, number):
    assert code in (0, -number, 128 + number), errors
    assert "Traceback" not in errors, errors


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_videos(place, tmp_path, number):
    """Every video that is there is whole; only a kill leaves a hidden file, which the next run removes."""
    out, command = tmp_path / "out", animation(place, tmp_path / "out")
    whole = seconds_of(animation(place, tmp_path / "first"))
    for moment in range(MOMENTS):
        code, errors = stopped(command, number, whole * (0.05 + 0.95 * moment / MOMENTS))
        assert_in_good_order(code, errors, number)
        for path in out.glob("*.mp4"):
            with VideoReader(path) as reader:
                assert reader.read_clip(0, 3).shape[0] == 3
        assert number == signal.SIGKILL or not out.exists() or not hidden(out)
    subprocess.run(command, check=True, capture_output=True)
    assert not hidden(out) and len(list(out.glob("*.mp4"))) >= 3


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_training(place, tmp_path, number):
    """Every checkpoint that is there is whole, and the run goes on to its end."""
    out, command = tmp_path / "out", training(place, tmp_path / "out")
    whole = seconds_of(training(place, tmp_path / "first"))
    for moment in range(MOMENTS):
        code, errors = stopped(command, number, whole * (0.05 + 0.95 * moment / MOMENTS))
        assert_in_good_order(code, errors, number)
        for folder in checkpoints(out) if (out / "checkpoints").exists() else []:
            if not folder.name.startswith("."):
                for name in ("model.safetensors", "state.safetensors"):
                    open_checkpoint(folder / name).close()
        assert number == signal.SIGKILL or not out.exists() or not hidden(out)
    subprocess.run(command, check=True, capture_output=True)
    assert not hidden(out) and len(checkpoints(out)) == 2
    assert sorted(os.listdir(out)) == [
        ".lock", "checkpoints", "config.yaml", "metrics.jsonl", "tensorboard", "train.log"
    ]  # fmt: skip


OUTPUTS = {"> /dev/full": 2, ">&-": 0, "| head -c 1 > /dev/null": 0, "2>&-": 0}


@pytest.mark.parametrize("output", OUTPUTS)
def test_all_pictures_are_done_whoever_reads(place, tmp_path, output):
    line = f'set -o pipefail; "$@" {output}'
    command = ["bash", "-c", line, "bash", *animation(place, tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, len(list((tmp_path / "out").iterdir()))) == (OUTPUTS[output], 3)
    assert "Traceback" not in result.stderr and result.stderr.count("error: ") == (OUTPUTS[output] == 2)
