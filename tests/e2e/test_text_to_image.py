"""Words to pictures to videos by the commands, on small random models."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.video_writer import read_metadata
from gm.errors import UserError
from gm.text_to_image import StableDiffusionPipeline
from gm.weights.names import expected_parameters
from gm.weights.safetensors_file import save_safetensors
from svd_tools import text_to_image, text_to_video
from tests.e2e.conftest import random_parameter

CONFIG = Path(__file__).parents[1] / "parity" / "sd_xl_base_small.yaml"
SMALL_VIDEO = ["--SVD.num_frames=2", "--SVD.height=64", "--SVD.width=128", "--SVD.sampling_steps=1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random fp16 weights of the small XL, with the leftovers that published files have."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("weights") / "xl.safetensors"
    shapes = expected_parameters(CONFIG)
    tensors = {name: random_parameter(rng, name, shape).astype(np.float16) for name, shape in shapes.items()}
    positions = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
    leftovers = {positions: np.arange(77)[None], "model_ema.decay": np.ones(()), "alphas_cumprod": np.ones(1000)}
    save_safetensors(path, {**tensors, **leftovers})
    return path


@pytest.fixture
def run(checkpoint, tmp_path, capsys):
    """Runs a command on the small model; returns the paths that it printed."""

    def run_main(command, *flags):
        model = [f"--SD.config={CONFIG}", f"--SD.checkpoint={checkpoint}", "--SD.sampling_steps=2"]
        command.main([*model, f"--output_dir={tmp_path / 'out'}", *flags])
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    return run_main


def test_pictures_of_a_file_s_prompts(run, checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("a (red:1.3) fox\n\nein Füchslein\n", encoding="utf-8")
    options = ("--negative_prompt=blurry", "--SD.cfg=4", "--SD.width=128", "--SD.schedule=trailing")
    paths = run(text_to_image, f"--prompt_file={tmp_path / 'prompts.txt'}", "--num_images=2", "--seed=7", *options)
    settings = [read_metadata(path) for path in paths]
    assert [(each["prompt"], each["seed"]) for each in settings] == [
        ("a (red:1.3) fox", 7), ("a (red:1.3) fox", 8), ("ein Füchslein", 7), ("ein Füchslein", 8)
    ]  # fmt: skip
    assert paths[0].name.startswith("a_red_1_3_fox_") and paths[0].name.endswith("_seed7.png")
    made = settings[3]["SD"]
    assert settings[3]["negative_prompt"] == "blurry" and Path(made["checkpoint"]).name == checkpoint.name
    assert (made["cfg"], made["sampling_steps"], made["height"], made["width"]) == (4.0, 2, 64, 128)
    json.dumps(settings)
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert all(picture.shape == (64, 128, 3) and picture.std() > 5 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 4
    (again,) = run(text_to_image, f"--config={paths[3]}")
    assert again.read_bytes() == paths[3].read_bytes(), "a picture's settings make it again"
    pipeline = StableDiffusionPipeline(CONFIG, checkpoint, cfg=4.0, width=128, schedule="trailing", sampling_steps=2)
    again = pipeline(pipeline.encode("ein Füchslein", "blurry"), 8)
    assert np.array_equal(again, pictures[3])
    assert not np.array_equal(pipeline(pipeline.encode("ein Füchslein", ""), 8), again)
    assert not np.array_equal(pipeline(pipeline.encode("ein Füchslein"), 8), pictures[3])


@pytest.mark.parametrize("flag", ["--SD.offload", pytest.param("--mode=0", marks=pytest.mark.slow)])
def test_one_step_without_guidance(run, flag):
    """As SDXL-Turbo is used; in graph mode, and with the parts in memory in turn, the picture is the same."""
    turbo = ["--SD.sampling_steps=1", "--SD.cfg=1", "--SD.schedule=trailing", "--SD.sampler=euler_ancestral"]
    paths = [run(text_to_image, "--prompt=a fox", *turbo, *more)[0] for more in ([], [flag])]
    pictures = [np.asarray(Image.open(path)).astype(int) for path in paths]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_words_to_video(run, tiny_checkpoint):
    picture, video = run(text_to_video, "--prompt=a fox", f"--SVD.checkpoint={tiny_checkpoint}", *SMALL_VIDEO)
    assert picture.suffix == ".png" and video.suffix == ".mp4" and picture.stem in video.stem
    assert Image.open(picture).size == (64, 64), "as many pixels as the model's, of about the video's shape"
    assert read_metadata(video)["image"] == picture.name and read_metadata(picture)["prompt"] == "a fox"


def test_the_picture_first(run):
    (picture,) = run(text_to_video, "--prompt=a fox", "--image_only", *SMALL_VIDEO)
    assert picture.suffix == ".png" and list(picture.parent.iterdir()) == [picture]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "^--prompt: give the words"),
        (["--prompt="], "^--prompt: there is no prompt in it"),
        (["--prompt=a", "--prompt_file=b"], "^--prompt: give the words"),
        (["--prompt_file=/nowhere.txt"], "^--prompt_file: /nowhere.txt cannot be read: No such file"),
        (["--prompt=a", "--SD.height=100"], "^--SD.height: 100 cannot be used; expected a multiple of 64"),
        (["--prompt=a", "--SD.schedule=fast"], "^--SD.schedule: fast cannot be used"),
        (["--prompt=a", "--SD.checkpoint=/nowhere.safetensors"], "^--SD.checkpoint: there is no file /nowhere"),
        (["--prompt=a", "--SD.config=/nowhere.yaml"], "^--SD.config: no file at /nowhere.yaml"),
    ],
)
def test_errors(run, flags, message):
    with pytest.raises(UserError, match=message) as error:
        run(text_to_image, *flags)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
