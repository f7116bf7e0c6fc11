"""What a user can get wrong: one clear line, exit code 2, and nothing left behind."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gm.errors import UserError
from gm.weights.safetensors_file import save_safetensors
from image_to_video import PROJECT, main

SCRIPT = PROJECT / "image_to_video.py"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((80, 80, 3), 128, np.uint8)).save(path)
    return path


@pytest.fixture
def fails(tiny_checkpoint, tmp_path, image, capsys):
    """Runs the command with some flags; returns the error line, having checked that nothing was written."""

    def run_main(*flags):
        defaults = [f"--image={image}", f"--output_dir={tmp_path / 'out'}", f"--SVD.checkpoint={tiny_checkpoint}"]
        with pytest.raises(UserError) as error:
            main([*defaults, "--SVD.num_frames=2", *flags])
        line = str(error.value)
        assert line and "\n" not in line
        assert capsys.readouterr().out == ""
        assert not [file for folder, _, files in os.walk(tmp_path / "out") for file in files]
        return line

    return run_main


@pytest.fixture
def no_weights(monkeypatch):
    """Makes any attempt to build the model a failure: these errors come first."""

    def refuse(*args, **kwargs):
        raise AssertionError("the model was built")

    monkeypatch.setattr("image_to_video.build_pipeline", refuse)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--SVD.smapler=euler"], "unknown flag --SVD.smapler; did you mean --SVD.sampler?"),
        (["--num_frames=3"], "unknown flag --num_frames; did you mean --SVD.num_frames?"),
        (["--SVD.fps=fast"], "--SVD.fps: fast cannot be used; expected a whole number"),
        (["--mode=2"], "--mode: 2 cannot be used; expected one of 0, 1"),
        (["--output_format=avi"], "--output_format: avi cannot be used; expected one of mp4, gif, webp, png"),
        (["--device_target=GPU"], "--device_target: GPU cannot be used; expected one of auto, CPU, Ascend"),
        (["--seed=-1"], "--seed: -1 cannot be used; expected a whole number from 0 to"),
        (["--output_format=gif", "--SVD.fps=60"], "gif shows at most 50 frames per second"),
        (["--config=nowhere.yaml"], "--config: File does not exist"),
        (["stray"], "unexpected argument stray"),
        (["--image=nowhere.png"], "--image: nowhere.png does not exist"),
        (["--image=/dev/null"], "--image: /dev/null is neither a file nor a folder"),
    ],
)
def test_flags_are_checked_before_weights_are_read(fails, no_weights, flags, line):
    assert line in fails(*flags)


SLIPS = [  # what newcomers type, beside the above
    (["--steps=20"], "unknown flag --steps; did you mean --SVD.sampling_steps?"),
    (["--SVD.num_inference_steps=20"], "did you mean --SVD.sampling_steps?"),
    (["--cfg=3"], "did you mean --SVD.max_cfg?"),
    (["--augmentation_level=0"], "did you mean --SVD.noise_aug_strength?"),
    (["--SVD.seed=3"], "did you mean --seed?"),
    (["--SVD.num-frames=5"], "did you mean --SVD.num_frames?"),
    (["--SVD.crop_offset", "0.2", "0.5"], "--SVD.crop_offset: 0.2 cannot be used; expected a list such as [0.5,0.5]"),
    (["--SVD.noise_aug_strength=0,02"], "--SVD.noise_aug_strength: 0,02 cannot be used"),
    (["--SVD.width=1024x576"], "--SVD.width: 1024x576 cannot be used; expected a multiple of 64"),
    (["--SVD.like=a1111"], "--SVD.like: a1111 cannot be used; expected one of sgm, diffusers, comfyui"),
    (["--SVD.like=comfyui", "--SVD.crop_offset=0,0"], "--SVD.crop_offset: [0,0] cannot be used with resize=bilinear"),
    (["--SVD.guider=constant", "--SVD.min_cfg=2"], "--SVD.min_cfg: the constant guider has one scale"),
    (["--SVD.checkpoint=nowhere.safetensors"], "--SVD.checkpoint: there is no file nowhere.safetensors"),
    (["--SVD.checkpoint=configs/svd.yaml"], "svd.yaml cannot be read: it is not a checkpoint"),
    (["--SVD.checkpoint=checkpoints"], "is a folder, not a file; convert a diffusers folder with"),
    (["--SVD.config=nowhere.yaml"], "--SVD.config: no file at nowhere.yaml"),
    (["--SVD.config=configs/svd_train.yaml"], "configs/svd_train.yaml describes no `model`"),
    (["--SVD.config=configs/svd.yaml"], "random_tiny.safetensors is svd_tiny; "),
    (["--SVD.lora=nowhere.safetensors"], "--SVD.lora: there is no checkpoint nowhere.safetensors"),
    (["--SVD.lora=checkpoints/svd_tiny.safetensors"], "--SVD.lora: "),
    (["--SVD.lora_alpha=8"], "--SVD.lora_alpha: 8 cannot be used without a LoRA"),
]


@pytest.mark.parametrize(("flags", "line"), SLIPS)
def test_slips_are_one_line_before_mindspore_is_imported(fails, monkeypatch, flags, line):
    def refuse(*args):
        raise AssertionError("the runtime was set up")

    monkeypatch.setattr("image_to_video.setup_runtime", refuse)
    said = fails(*flags)
    assert line in said and len(said) < 500


def test_a_configuration_alone_names_the_file_that_it_needs(image, tmp_path):
    with pytest.raises(UserError, match=r"^--SVD\.checkpoint: configs/svd\.yaml needs svd\.safetensors: "):
        main([f"--image={image}", f"--output_dir={tmp_path / 'out'}", "--SVD.config=configs/svd.yaml"])


def test_a_lora_given_as_weights_is_called_what_it_is(fails, tmp_path):
    save_safetensors(tmp_path / "l.safetensors", {"diffusion_model.x.lora_A.weight": np.zeros((1, 2), np.float32)})
    assert "l.safetensors is a LoRA, which goes on top of a checkpoint" in fails(
        f"--SVD.checkpoint={tmp_path / 'l.safetensors'}"
    )


def test_bad_images_are_found_before_weights_are_read(fails, no_weights, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder").mkdir()
    assert "empty.png: the file is empty" in fails(f"--image={tmp_path / 'empty.png'}")
    assert "text.jpg: it is not an image" in fails(f"--image={tmp_path / 'text.jpg'}")
    assert "--image: no image in the folder" in fails(f"--image={tmp_path / 'folder'}")
    (tmp_path / "folder" / "empty.png").write_bytes(b"")
    (tmp_path / "folder" / "cut.png").write_bytes(b"\x89PNG")
    assert fails(f"--image={tmp_path / 'folder'}").startswith("2 of 2 images failed: ")


def test_unwritable_output_folders_are_found_before_weights_are_read(fails, no_weights, image):
    for folder in ("/proc/videos", image, image / "videos"):
        assert f"--output_dir: cannot write in {folder}: " in fails(f"--output_dir={folder}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--SVD.height=100"], ["--SVD.height: 100", "multiple of 64", "128"]),
        (["--SVD.width=0"], ["--SVD.width: 0", "multiple of 64"]),
        (["--SVD.num_frames=0"], ["--SVD.num_frames: 0", "1 to 1024"]),
        (["--SVD.fps=0"], ["--SVD.fps: 0", "1 to 1000"]),
        (["--SVD.motion_bucket_id=256"], ["--SVD.motion_bucket_id: 256", "0 to 255"]),
        (["--SVD.crop_offset=[0,2]"], ["--SVD.crop_offset: [0,2]", "0 to 1"]),
        (["--SVD.decode_chunk_size=-1"], ["--SVD.decode_chunk_size: -1", "0 to 1024"]),
        (["--SVD.tile_size=64"], ["--SVD.tile_size: 64", "multiple of 64 from 128 to 8192"]),
        (["--SVD.tile_size=200"], ["--SVD.tile_size: 200", "multiple of 64 from 128 to 8192"]),
        (["--SVD.sampler=ddim"], ["--SVD.sampler: ddim", "euler, heun, euler_ancestral, dpmpp2m, consistency"]),
        (["--SVD.guidance_interval=[5,1]"], ["--SVD.guidance_interval: [5,1]", "second sigma is the larger"]),
        (["--SVD.guidance_interval=3"], ["--SVD.guidance_interval"]),
        (["--SVD.feature_cache=0"], ["--SVD.feature_cache: 0", "1 to 10000"]),
        (["--SVD.lora_scale=0.5"], ["--SVD.lora_scale: 0.5", "name one as `lora`"]),
        (["--SVD.schedule=cosine"], ["--SVD.schedule: cosine", "karras", "ays"]),
        (["--SVD.guider=cube"], ["--SVD.guider: cube", "linear, constant, triangle, trapezoid"]),
        (["--SVD.amp_level=O9"], ["--SVD.amp_level", "O9", "O0", "O2"]),
        (["--SVD.checkpoint=nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--SVD.config=nowhere.yaml"], ["--SVD.config", "nowhere.yaml"]),
    ],
)
def test_the_model_s_settings_name_flag_and_remedy(fails, flags, words):
    line = fails(*flags)
    assert all(word in line for word in words), line


def test_a_cut_checkpoint_is_named(fails, tiny_checkpoint, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_checkpoint.read_bytes()[:1_000_000])
    assert "cut.safetensors" in fails(f"--SVD.checkpoint={cut}")


def test_a_checkpoint_of_another_model_is_told_with_its_differences(image, tiny_checkpoint, tmp_path):
    flags = [f"--image={image}", f"--output_dir={tmp_path / 'out'}", f"--SVD.checkpoint={tiny_checkpoint}"]
    with pytest.raises(UserError) as error:
        main([*flags, f"--SVD.config={PROJECT / 'configs' / 'svd.yaml'}"])
    line = str(error.value)
    assert f"{tiny_checkpoint} is svd_tiny; " in line and "svd.yaml needs svd.safetensors" in line
    assert "\n" not in line and not (tmp_path / "out").exists()


def test_running_out_of_memory_says_what_to_do(fails, stand_in):
    stand_in(RuntimeError("Memory not enough:\nMemory isn't enough and alloc failed, kernel name: Conv2D-op4"))
    line = fails()
    remedies = ["--SVD.decode_chunk_size", "--SVD.offload", "--SVD.num_frames"]
    assert line.startswith("out of memory")
    assert -1 < line.find(remedies[0]) < line.find(remedies[1]) < line.find(remedies[2])


def test_other_failures_are_not_called_out_of_memory(stand_in, image, tmp_path):
    stand_in(RuntimeError("a defect of ours"))
    with pytest.raises(RuntimeError, match="a defect of ours"):
        main([f"--image={image}", f"--output_dir={tmp_path}"])


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own with 16 KiB of room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_without_room_is_found_before_sampling(fails, small_disk, stand_in):
    stand_in(AssertionError("sampled for nothing"))
    line = fails(f"--output_dir={small_disk}")
    assert line.startswith("no room for the video") and str(small_disk) in line
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("video_format", ["mp4", "gif", "webp", "png"])
def test_a_disk_that_fills_up_leaves_nothing(fails, small_disk, stand_in, monkeypatch, video_format):
    stand_in(np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8))
    monkeypatch.setattr("image_to_video.require_free_space", lambda *args: None)
    assert fails(f"--output_dir={small_disk}", f"--output_format={video_format}").endswith("no room left on the disk")
    assert not list(small_disk.iterdir())


def run_script(*flags, **options):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, flags)], capture_output=True, text=True, check=False, **options
    )


def test_the_process_ends_with_code_2_and_one_line(image, tmp_path):
    result = run_script(f"--image={image}", "--SVD.smapler=euler", cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: unknown flag --SVD.smapler; did you mean --SVD.sampler?\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["image.png"]


def test_help_explains_every_flag():
    result = run_script("--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    for flag in (
        "--image",
        "--seed",
        "--mode",
        "--output_format",
        "--SVD.num_frames",
        "--SVD.offload",
        "--SVD.max_cfg",
    ):
        assert flag in text
    assert "required, type: Annotated[str, 'path'])" in text and text.count("required") == 1  # only --image


def test_a_process_that_really_runs_out_of_memory(image, tiny_checkpoint, tmp_path):
    flags = [f"--image={image}", f"--output_dir={tmp_path / 'out'}", f"--SVD.checkpoint={tiny_checkpoint}"]
    flags += ["--SVD.height=1024", "--SVD.width=1024", "--SVD.num_frames=14"]

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (1_300_000_000, 1_300_000_000))

    result = run_script(*flags, cwd=tmp_path, preexec_fn=limit)
    assert result.returncode == 2, result
    assert result.stderr.splitlines()[-1].startswith(
        "error: out of memory; in this order, try: --SVD.decode_chunk_size"
    )
    assert "Traceback" not in result.stderr and not list((tmp_path / "out").rglob("*"))
