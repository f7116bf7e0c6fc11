"""The small model that comes with the project: what a new user runs first."""

import subprocess
import sys
import time

import numpy as np
import pytest

from data.image_reader import fit_image, read_image
from data.video_metrics import colour_drift, mean_flow, psnr
from data.video_reader import VideoReader
from gm.weights.checkpoint import open_checkpoint
from gm.weights.names import expected_parameters
from modules.pipeline import SVDPipeline
from tests.e2e.training import PROJECT

CONFIG, WEIGHTS = PROJECT / "configs/svd_tiny.yaml", PROJECT / "checkpoints/svd_tiny.safetensors"
IMAGE = PROJECT / "examples/mountain_path.jpg"
MAX_BYTES, FRAMES, SIZE = 25_000_000, 8, 128
SECONDS = 120  # for the command; the machine may be busy


def test_its_file_is_small_and_has_every_tensor():
    assert WEIGHTS.stat().st_size <= MAX_BYTES
    with open_checkpoint(WEIGHTS) as source:
        assert {name: info.shape for name, info in source.info.items()} == expected_parameters(CONFIG)


def test_the_command_needs_an_image_and_nothing_else(tmp_path):
    start = time.perf_counter()
    command = [sys.executable, str(PROJECT / "image_to_video.py"), "--image", str(IMAGE)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < SECONDS
    with VideoReader(tmp_path / done.stdout.strip()) as reader:
        frames = reader.read_clip(0, FRAMES, 1)
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert psnr(frames[0], fit_image(read_image(IMAGE), SIZE, SIZE, (0.5, 0.5))) > 18  # 20 over all pictures, uncoded


@pytest.mark.slow
def test_it_moves_as_much_as_it_is_told():
    pipeline = SVDPipeline(CONFIG, WEIGHTS)
    image, flow = read_image(IMAGE), []
    for bucket in (20, 110, 200):
        pipeline.motion_bucket_id = bucket
        clips = [pipeline(image, seed) for seed in range(2)]
        flow.append(np.mean([mean_flow(frames, pipeline.fps) for frames in clips]))
        assert np.mean([colour_drift(frames) for frames in clips]) < 8
    assert flow[0] < flow[1] < flow[2] and flow[2] > 3 * flow[0]
