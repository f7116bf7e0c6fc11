"""The releases of MindSpore that requirements.txt allows, each installed for the test beside everything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.training import Workplace, losses

PROJECT = Path(__file__).parents[2]
RELEASES = ("2.7.2", "2.9.0", "2.10.0")  # 2.8 is what all other tests run with


@pytest.fixture(scope="module", params=RELEASES)
def run(request, tmp_path_factory):
    """Runs Python with one release."""
    folder = tmp_path_factory.mktemp("mindspore")
    flags = ["--quiet", "--no-compile", "--no-deps", f"--target={folder}"]
    install = [sys.executable, "-m", "pip", "install", *flags, f"mindspore=={request.param}"]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip(f"MindSpore {request.param} cannot be installed")

    def python(*arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)])}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert python("-c", "import mindspore; print(mindspore.__version__)").strip() == request.param
    return python


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", [0, 1])
def test_sampling_and_training(run, tmp_path, mode):
    place = Workplace(tmp_path)
    flags = ["--SVD.num_frames=2", "--SVD.height=64", "--SVD.width=64", "--SVD.sampling_steps=2", f"--mode={mode}"]
    video = run("image_to_video.py", "--image=examples/tiger.jpg", f"--output_dir={tmp_path}", *flags)
    assert Path(video.strip()).stat().st_size > 1000
    run("train.py", *place.flags(tmp_path / "run", f"--environment.mode={mode}", "--train.max_steps=3"))
    here = place.train(tmp_path / "here", f"--environment.mode={mode}", "--train.max_steps=3")
    assert losses(tmp_path / "run") == pytest.approx(losses(here), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_parity(run):
    run("-m", "pytest", "-q", "tests/parity/test_networks.py", "-k", "test_unet or test_temporal_decoder")
