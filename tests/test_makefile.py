import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def make(tmp_path):
    """Runs a target with a Python that prints its arguments."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor a in "$@"; do printf "argument: %s\\n" "$a"; done\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.run-time").touch()

    def run(*arguments):
        done = subprocess.run(["make", "-s", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    return run


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("name", ["my photo.jpg", "it's.jpg", 'a"b', "a$b $(c) `d`", "#1;2&3", "é—*", "a\\b"])
def test_any_name_can_be_animated(make, name):
    assert f"argument: --image={name}" in make("demo", f"IMAGE={name}")
    lines = make("video", f"IMAGE={name}", f"CHECKPOINT={name}", f"CONFIG={name}")
    for flag in ("image", "SVD.checkpoint", "SVD.config"):
        assert f"argument: --{flag}={name}" in lines
    assert not [line for line in make("video") if "--SVD.config" in line]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_says_what_it_does_and_how_to_go_on(make):
    first, *_, last = make("demo")
    assert first.startswith("Animating examples/mountain_path.jpg") and "make demo IMAGE=photo.jpg" in last
