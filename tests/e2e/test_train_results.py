"""What train.py writes is what the other programs read; the README's commands do it."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import image_to_video
from data.video_reader import VideoReader
from gm.weights.checkpoint import open_checkpoint
from svd_tools import merge_lora
from tests.e2e.training import MODEL, PROJECT, Workplace, checkpoints, losses

SAMPLING = ("--SVD.num_frames=2", "--SVD.sampling_steps=2", "--mode=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("training"))
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save(place.folder / "image.png")
    return place


def sample(place, checkpoint, output, *flags):
    """The frames that image_to_video.py makes, uint8 (t, h, w, 3)."""
    command = [f"--SVD.config={MODEL}", f"--SVD.checkpoint={checkpoint}", f"--image={place.folder / 'image.png'}"]
    image_to_video.main([*command, f"--output_dir={output}", "--output_format=png", *SAMPLING, *flags])
    (folder,) = output.iterdir()
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def readme_command(program):
    """The first of the Training section's commands that runs a program: flag -> value."""
    section = (PROJECT / "README.md").read_text(encoding="utf-8").split("\n## Training\n")[1].split("\n## ")[0]
    section = section.replace("\\\n", " ")  # continued lines
    (line, *_) = re.findall(rf"^    python {re.escape(program)} (.*)$", section, flags=re.MULTILINE)
    return dict(word.split("=", 1) for word in shlex.split(line))


def run_command(program, flags, cwd):
    """The last line that a command prints."""
    command = [sys.executable, str(PROJECT / program), *(f"{flag}={value}" for flag, value in flags.items())]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_readmes_commands_lead_from_videos_to_a_video(place):
    """As they stand there, but for the model, the names of files and the sizes."""
    folder = place.folder / "readme"
    score, train, animate = (
        readme_command(name) for name in ("svd_tools/score_motion.py", "train.py", "image_to_video.py")
    )
    score.update({"--videos": place.folder, "--output": place.folder / "scored.csv"})
    run_command("svd_tools/score_motion.py", score, place.folder)
    clips = "--train.dataset.init_args."
    assert f"{clips}data_dir" in train and f"{clips}metadata" in train and "--train.output_dir" in train
    train.update({"--config": PROJECT / train["--config"], "--svd_config": MODEL, "--train.epochs": 1})
    train.update({"--train.pretrained": place.checkpoint, "--train.output_dir": folder})
    train.update({f"{clips}frames": 2, f"{clips}step": 2, f"{clips}height": 64, f"{clips}width": 64})
    train.update({f"{clips}data_dir": place.folder, f"{clips}metadata": place.folder / "scored.csv"})
    newest = run_command("train.py", train, place.folder)
    assert newest == str(folder / "checkpoints" / "step_00000004") and len(losses(folder)) == 4
    assert animate["--SVD.checkpoint"].endswith("/model.safetensors")
    animate.update({"--SVD.config": MODEL, "--SVD.checkpoint": f"{newest}/model.safetensors"})
    animate.update({"--image": place.folder / "image.png", "--output_dir": folder, "--SVD.num_frames": 2})
    video = run_command("image_to_video.py", {**animate, "--SVD.sampling_steps": 2}, place.folder)
    with VideoReader(video) as reader:
        assert reader.read_clip(0, 2, 1).shape == (2, 64, 64, 3)


@pytest.mark.slow
def test_a_finetuned_model_gives_another_video(place, tmp_path):
    trained = place.train(place.folder / "trained", "--train.scheduler.lr=1e-2", "--train.ema_decay=0", epochs=1)
    before = sample(place, place.checkpoint, tmp_path / "before")
    after = sample(place, checkpoints(trained)[-1] / "model.safetensors", tmp_path / "after")
    assert before.shape == after.shape == (2, 64, 64, 3) and not np.array_equal(before, after)


@pytest.fixture(scope="module")
def lora(place):
    """A LoRA's file, of two steps that move it far."""
    flags = (
        "--train.lora.rank=2",
        "--train.max_steps=2",
        "--train.scheduler.lr=0.1",
        "--train.scheduler.warmup_steps=0",
    )
    return checkpoints(place.train(place.folder / "lora", *flags, "--train.ema_decay=0"))[-1] / "lora.safetensors"


def test_lora_is_saved_alone(lora):
    assert sorted(path.name for path in lora.parent.iterdir()) == [
        "lora.safetensors",
        "state.json",
        "state.safetensors",
    ]
    with open_checkpoint(lora) as source:
        assert source.metadata["rank"] == "2" and source.metadata["targets"] == "temporal"
        assert all(".time_stack." in name for name in source.info)
        assert any(np.abs(source.read(name)).max() > 0 for name in source.info if ".lora_B." in name)


@pytest.mark.slow
def test_lora_samples_as_merged_and_as_loaded(place, lora, tmp_path):
    merged = tmp_path / "merged.safetensors"
    merge_lora.main([f"--checkpoint={place.checkpoint}", f"--lora={lora}", f"--out={merged}", "--scale=0.7"])
    with_file = sample(place, merged, tmp_path / "merged")
    loaded = sample(place, place.checkpoint, tmp_path / "loaded", f"--SVD.lora={lora}", "--SVD.lora_scale=0.7")
    without = sample(place, place.checkpoint, tmp_path / "without")
    assert np.array_equal(with_file, loaded) and not np.array_equal(loaded, without)
