"""The README's finetuning commands on what ships, as they are written there, but for three steps each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.training import PROJECT, checkpoints, free_port

SHIPPED = ("train.py", "svd_tools", "gm", "modules", "data", "configs", "examples", "checkpoints")
STEPS = 3


def commands():
    """The first block of commands in the README's chapter, a line each."""
    chapter = (PROJECT / "README.md").read_text(encoding="utf-8").split("\n## Training\n")[1]
    block = re.search(r"\n\n((?:    .*\n)+)", chapter).group(1)
    return [line.strip() for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_finetuning_lines(tmp_path):
    for name in SHIPPED:
        (tmp_path / name).symlink_to(PROJECT / name)
    score, temporal, lora, together = commands()
    assert score.startswith("python svd_tools/score_motion.py") and together.startswith("msrun --worker_num=2")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    together = together.replace("msrun ", f"msrun --master_port={free_port()} ")
    for command in (score, *(f"{line} --train.max_steps={STEPS}" for line in (temporal, lora, together))):
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    for folder, file in (("temporal", "model"), ("lora", "lora"), ("together", "model")):
        newest = checkpoints(tmp_path / "output" / folder)[-1]
        assert newest.name == f"step_{STEPS:08d}" and (newest / f"{file}.safetensors").exists()
