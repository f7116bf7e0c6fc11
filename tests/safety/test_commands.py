"""Some of the worst files given to the real commands: exit code 2, one line, in time, within 2 GiB, nothing left."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.e2e.training import PROJECT
from tests.safety.doors import files_in
from tests.safety.test_corpus import CORPUS
from tests.safety.test_fault_grid import ALIASES, TENSORS, png

SECONDS, GIBIBYTES = 30, 2
# Runs a command in a process between: a child starts with the peak memory of the one that it was forked from.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, usage.ru_maxrss, usage.ru_utime)
"""


def image(folder):
    (folder / "a.png").write_bytes(png(9999, 9999, b"\0" * (9999 * 20_000)))  # nearly as large as is read, and cut
    return ["image_to_video.py", f"--image={folder}/a.png", f"--output_dir={folder}/out"]


def pipe(folder):
    os.mkfifo(folder / "a.yaml")
    return ["image_to_video.py", f"--config={folder}/a.yaml", "--image=examples", f"--output_dir={folder}/out"]


def aliases(folder):
    (folder / "a.yaml").write_bytes(ALIASES)
    return ["train.py", f"--config={folder}/a.yaml", f"--train.output_dir={folder}/out"]


def header(folder):
    (folder / "a.safetensors").write_bytes(TENSORS["bomb"])
    return ["svd_tools/convert.py", f"--pt_weights_file={folder}/a.safetensors", f"--out_dir={folder}/out"]


def strip(folder):
    shutil.copytree(CORPUS / "x" / "photo_1x5000", folder / "photos")
    flags = [f"--photos={folder}/photos", "--split=all", f"--output_dir={folder}/out", "--clips=1"]
    return ["svd_tiny/make_clips.py", *flags]


def network(folder):
    (folder / "a.yaml").write_text(
        f"base: {PROJECT}/configs/svd_tiny.yaml\n"
        "model: {params: {network_config: {params: {model_channels: 16384, channel_mult: [64, 64, 64, 64]}}}}\n"
    )
    return ["image_to_video.py", f"--SVD.config={folder}/a.yaml", "--image=examples", f"--output_dir={folder}/out"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", [image, pipe, aliases, header, strip, network], ids=lambda make: make.__name__)
def test_a_real_command_is_bounded(tmp_path, make):
    script, *flags = make(tmp_path)
    started = time.monotonic()
    with open(tmp_path / "errors", "w+") as errors:
        command = [sys.executable, "-c", MEASURED, sys.executable, str(PROJECT / script), *flags]
        figures = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, cwd=PROJECT, text=True).stdout
        returncode, kibibytes, seconds = map(float, figures.split())
        errors.seek(0)
        lines = errors.read().splitlines()
    assert returncode == 2 and lines[-1].startswith("error: ") and len(lines[-1]) < 500, lines
    assert not [line for line in lines[:-1] if "Traceback" in line or "Error" in line]
    assert kibibytes / 2**20 < GIBIBYTES and seconds < SECONDS and time.monotonic() - started < 100
    assert not files_in(tmp_path / "out")
