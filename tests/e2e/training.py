"""Runs of train.py on a network, a checkpoint and videos that a test can afford."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import numpy as np

import train
from gm.weights.checkpoint import open_checkpoint
from tests.data.synthetic_videos import pan, write_video
from tests.svd_tools.small_model import save_random

PROJECT = Path(__file__).parents[2]
MODEL = Path(__file__).with_name("mini.yaml")
NUM_VIDEOS, NUM_FRAMES = 4, 12
GRAPH, PYNATIVE = 0, 1


class Workplace:
    """A folder with a pretrained checkpoint, videos and their CSV, and the flags for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "pretrained.safetensors"
        save_random(self.checkpoint, MODEL)
        rows = ["path,length,motion_bucket_id"]
        for index in range(NUM_VIDEOS):
            write_video(folder / f"{index}.mp4", pan(NUM_FRAMES, 64, 96, 1.0 + index, seed=index))
            rows.append(f"{index}.mp4,{NUM_FRAMES},{40 * index}")
        self.metadata = folder / "videos.csv"
        self.metadata.write_text("\n".join(rows) + "\n")

    def flags(self, output: Path, *more: str, epochs: int = 2) -> List[str]:
        """The command of the README with small numbers; flags in `more` win."""
        return [
            f"--config={PROJECT / 'configs/svd_train.yaml'}",
            f"--svd_config={MODEL}",
            f"--train.pretrained={self.checkpoint}",
            f"--train.output_dir={output}",
            f"--environment.mode={PYNATIVE}",
            "--train.temporal_only=True",
            f"--train.epochs={epochs}",
            "--train.dataset.init_args.frames=2",
            "--train.dataset.init_args.step=2",
            f"--train.dataset.init_args.data_dir={self.folder}",
            f"--train.dataset.init_args.metadata={self.metadata}",
            "--train.dataset.init_args.height=64",
            "--train.dataset.init_args.width=64",
            "--train.dataloader.num_workers=0",
            "--train.scheduler.lr=1e-3",
            "--train.scheduler.warmup_steps=2",
            "--train.recompute=False",
            *more,
        ]

    def train(self, output: Path, *more: str, epochs: int = 2) -> Path:
        """Runs the command in this process; returns the run's folder."""
        train.main(self.flags(output, *more, epochs=epochs))
        return output

    def start(self, output: Path, *more: str, epochs: int = 2) -> subprocess.Popen:
        """Starts the command in a process of its own."""
        command = [sys.executable, str(PROJECT / "train.py"), *self.flags(output, *more, epochs=epochs)]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def msrun(self, workers: int, output: Path, *more: str, epochs: int = 2) -> subprocess.CompletedProcess:
        """Runs the command in several processes that train together."""
        command = [str(Path(sys.executable).with_name("msrun")), f"--worker_num={workers}"]
        command += [f"--local_worker_num={workers}", f"--master_port={free_port()}", "--join=True"]
        command += [f"--log_dir={self.folder / 'msrun'}", str(PROJECT / "train.py")]
        command += self.flags(output, "--environment.distributed=True", *more, epochs=epochs)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=environment)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def losses(output: Path) -> Dict[int, float]:
    """step -> loss."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return {values["step"]: values["loss"] for values in map(json.loads, lines)}


def checkpoints(output: Path) -> List[Path]:
    return sorted((output / "checkpoints").iterdir())


def read(path: Path) -> Dict[str, np.ndarray]:
    with open_checkpoint(path) as source:
        return {name: np.array(source.read(name)) for name in source.info}


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two files hold the same names and bits."""
    ours, theirs = read(one), read(other)
    return ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def changed_names(one: Path, other: Path) -> set:
    ours, theirs = read(one), read(other)
    assert ours.keys() == theirs.keys()
    return {name for name in ours if ours[name].tobytes() != theirs[name].tobytes()}


def largest_difference(one: Path, other: Path, kind: str) -> float:
    """Over all tensors of a kind (weight, average) of two state files: |a - b| / |a|, in norms."""
    ours, theirs = read(one), read(other)
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if name.startswith(f"{kind}.")]
    return max(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(ours[name]) for name in names)


def largest_change(checkpoint: Path, state: Path) -> float:
    """How far training moved the tensor that it moved farthest: |a - b| / |a|, in norms."""
    before, after = read(checkpoint), read(state)
    changes = []
    for name in (name for name in after if name.startswith("weight.")):
        was = before[name.replace("weight.", "model.diffusion_model.", 1)]
        changes.append(np.linalg.norm(after[name] - was) / np.linalg.norm(was))
    return max(changes)


def signal_at_step(process: subprocess.Popen, output: Path, step: int, number: int = signal.SIGKILL) -> int:
    """Sends a signal as soon as a step is done; returns the exit code. A run that ends before is not disturbed."""
    metrics = output / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            os.kill(process.pid, number)
            break
        time.sleep(0.02)
    process.communicate()
    return process.returncode
