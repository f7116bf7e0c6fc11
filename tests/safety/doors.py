"""The doors by which files get into the program, each with a good file and the call that takes one, in this process."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple
from unittest import mock

import numpy as np
import torch
from jsonargparse import Namespace
from mindspore import Parameter, Tensor
from PIL import Image

import image_to_video
from data.motion import Motion, Piece
from data.motion_journal import Finding, Journal
from data.video_dataset import VideoDataset
from data.video_writer import write_picture
from gm.training.callbacks import MetricsFile
from gm.training.checkpoints import NUMBERS, TENSORS, read_numbers, read_tensors
from gm.training.train_step import LossScale
from gm.weights.checkpoint import save_safetensors
from gm.weights.ckpt_file import write_ckpt
from gm.weights.lora_file import LowRank, write_lora
from gm.weights.safetensors_file import array_bytes, array_info
from modules.training.latent_cache import CachedDataset
from svd_tiny import make_clips
from svd_tools import merge_lora, score_motion, text_to_image
from svd_tools.evaluate import read_clip
from tests.data.synthetic_videos import pan, write_video
from tests.e2e.training import MODEL
from tests.svd_tools.small_model import run_convert, save_random

LAYER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
STATE = {"step": 1, "updates": 1, "skipped": 0, "nonfinite": 0, "format": 1, "identity": {}}
STATE["loss_scale"] = {"value": 1.0, "finite_updates": 0}
CLIP = {"latents": (2, 4, 8, 8), "clip_token": (1, 8), "cond_latents": (1, 4, 8, 8), "cond_augs": (1,)}
CLIP.update(fps_id=(), start=())
MOTION = Motion((Piece(0, 5, 0.1),))
SETTINGS = {"height": 64, "moves": {"pan": 1.0}}


class Kit:
    """Good files of every kind, made once.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        weights = save_random(self / "weights.safetensors", MODEL)
        info = {name: array_info(array) for name, array in weights.items()}
        write_ckpt(self / "weights.ckpt", info, lambda name: array_bytes(weights[name]))
        torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, self / "weights.pt")
        rng = np.random.default_rng(0)
        rows, columns = weights[f"{LAYER}.weight"].shape
        low = LowRank(rng.standard_normal((2, columns)), rng.standard_normal((rows, 2)), 2.0)
        write_lora(self / "lora.safetensors", {LAYER: low}, {})
        Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(self / "image.png")
        (self / "model.yaml").write_text(f"base: {MODEL}\nmodel: {{params: {{num_frames: 2}}}}\n")
        (self / "flags.yaml").write_text(f"seed: 3\nSVD: {{config: {MODEL}, num_frames: 2}}\n")
        write_picture(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), self / "made.png", {"seed": 3})
        write_video(self / "video.mp4", pan(6, 64, 96, 1.0))
        (self / "videos.csv").write_text("path,length,motion_bucket_id\nvideo.mp4,6,20\n")
        shard = {"conv_in.weight": rng.standard_normal((2, 3)).astype(np.float32)}
        save_safetensors(self / "shard.safetensors", shard)
        (self / "index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": "shard.safetensors"}}))
        (self / NUMBERS).write_text(json.dumps(STATE))
        save_safetensors(self / TENSORS, {"weight.a": np.ones((2, 3), np.float32)})
        arrays = {name: np.ones(shape, np.float32) for name, shape in CLIP.items()}
        arrays["start"] = np.array(0, np.int32)
        save_safetensors(self / "latents.safetensors", arrays)
        info = {name: array_info(array) for name, array in arrays.items()}
        write_ckpt(self / "small.ckpt", info, lambda name: array_bytes(arrays[name]))
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, self / "small.pt")
        frames, latents = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 4, 1, 1), np.float32)
        save_safetensors(self / "clip.safetensors", {"frames": frames, "latents": latents})
        Journal(self / "journal").add("video.mp4", self / "video.mp4", Finding(6, 10.0, 64, 96, MOTION))
        (self / "prompts.txt").write_text("a fox in the snow\na tiger\n")
        (self / "settings.json").write_text(json.dumps(SETTINGS))
        (self / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


class Door(NamedTuple):
    """A kind of file that is taken in.

    Attributes:
        sample: the good file's name in the kit.
        enter: gives a file to the program: (kit, the file, a folder for what is written).
        name: what the file is called where it lies, if the program or its suffix decides that.
    """

    sample: str
    enter: Callable[[Kit, Path, Path], Any]
    name: str = ""


def animate(kit: Kit, out: Path, **flags: Any) -> None:
    """`image_to_video.py` up to the sampling."""
    flags = {"image": kit / "image.png", "output_dir": out, "SVD.config": MODEL,
             "SVD.checkpoint": kit / "weights.safetensors", **flags}  # fmt: skip
    with mock.patch("image_to_video.animate"):
        image_to_video.main([f"--{name}={value}" for name, value in flags.items() if value is not None])


def score(videos: Path, out: Path, *more: str) -> None:
    with mock.patch("svd_tools.score_motion.draw_histogram"):
        score_motion.main([f"--videos={videos}", f"--output={out / 'v.csv'}", "--workers=1", *more])


def train_on(kit: Kit, file: Path, out: Path) -> None:
    VideoDataset(str(kit.folder), str(file), frames=2, height=64, width=64)


def merge(kit: Kit, file: Path, out: Path) -> None:
    flags = {"checkpoint": kit / "weights.safetensors", "lora": file, "out": out / "merged.safetensors"}
    merge_lora.main([f"--{name}={value}" for name, value in flags.items()])


def convert_index(kit: Kit, file: Path, out: Path) -> None:
    from svd_tools.conversion.weight_files import open_weights

    (file.parent / "unet").mkdir()
    shutil.copy(kit / "shard.safetensors", file.parent / "unet")
    os.rename(file, file.parent / "unet" / "diffusion_pytorch_model.safetensors.index.json")
    open_weights(file.parent)


def resume_numbers(kit: Kit, file: Path, out: Path) -> None:
    LossScale().restore(read_numbers(file.parent)["loss_scale"])


def resume_tensors(kit: Kit, file: Path, out: Path) -> None:
    read_tensors(file.parent, {"weight.a": Parameter(Tensor(np.zeros((2, 3), np.float32)))}, {})


def read_cached(kit: Kit, file: Path, out: Path) -> None:
    CachedDataset([mock.Mock(motion_bucket_id=3)], [[file]], 1, lambda index, start: 3.0, CLIP).read(0, 0)


def read_prompts(kit: Kit, file: Path, out: Path) -> None:
    text_to_image.read_prompts(Namespace(prompt=None, prompt_file=str(file), seed=1, num_images=1))


def read_metrics(kit: Kit, file: Path, out: Path) -> None:
    metrics = MetricsFile()
    metrics.on_start(mock.Mock(output_dir=file.parent, step=1))
    metrics.on_end(1)


def read_settings(kit: Kit, file: Path, out: Path) -> None:
    make_clips.check_settings(file.parent, SETTINGS)


DOORS: Dict[str, Door] = {
    "image": Door("image.png", lambda kit, file, out: animate(kit, out, image=file)),
    "image folder": Door("image.png", lambda kit, file, out: animate(kit, out, image=file.parent), "a.png"),
    "model YAML": Door("model.yaml", lambda kit, file, out: animate(kit, out, **{"SVD.config": file})),
    "flags file": Door("flags.yaml", lambda kit, file, out: animate(kit, out, config=file, **{"SVD.config": None})),
    "settings inside": Door("made.png", lambda kit, file, out: animate(kit, out, config=file), "a.png"),
    "videos' CSV": Door("videos.csv", lambda kit, file, out: score(file, out, f"--data_dir={kit.folder}")),
    "training CSV": Door("videos.csv", train_on),
    "video": Door("video.mp4", lambda kit, file, out: score(file.parent, out), "a.mp4"),
    "safetensors": Door(
        "weights.safetensors", lambda kit, file, out: animate(kit, out, **{"SVD.checkpoint": file})
    ),
    ".ckpt": Door("weights.ckpt", lambda kit, file, out: animate(kit, out, **{"SVD.checkpoint": file})),
    "pickle": Door("weights.pt", lambda kit, file, out: run_convert(file, out, config=MODEL)),
    "shards' index": Door("index.json", convert_index),
    "prompts": Door("prompts.txt", read_prompts),
    "LoRA": Door("lora.safetensors", merge),
    "resume numbers": Door(NUMBERS, resume_numbers, NUMBERS),
    "resume tensors": Door(TENSORS, resume_tensors, TENSORS),
    "latent cache": Door("latents.safetensors", read_cached),
    "evaluated clip": Door("clip.safetensors", lambda kit, file, out: read_clip(file)),
    "score journal": Door("journal", lambda kit, file, out: Journal(file)),
    "clips' settings": Door("settings.json", read_settings, "settings.json"),
    "metrics": Door("metrics.jsonl", read_metrics, "metrics.jsonl"),
}


def files_in(folder: Path) -> List[Path]:
    """What a run left in a folder, empty folders apart."""
    return [path for path in folder.rglob("*") if not path.is_dir()]
