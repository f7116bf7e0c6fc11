import re
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from data.image_reader import read_image
from data.video_writer import read_metadata
from gm.errors import UserError
from gm.files import make_output_dir
from gm.weights.checkpoint import file_sha256
from image_to_video import PROJECT, main
from modules.pipeline import SVDPipeline

TIGER = PROJECT / "examples" / "tiger.jpg"
SMALL = {"num_frames": 2, "height": 64, "width": 128, "sampling_steps": 2}
SMALL_FLAGS = [f"--SVD.{name}={value}" for name, value in SMALL.items()]


@pytest.fixture
def run(tiny_checkpoint, tmp_path, capsys):
    """Runs the command on the small random model; returns the paths that it printed."""

    def run_main(*flags):
        main([f"--SVD.checkpoint={tiny_checkpoint}", f"--output_dir={tmp_path / 'out'}", *SMALL_FLAGS, *flags])
        return [make_path(line) for line in capsys.readouterr().out.splitlines()]

    def make_path(line):
        path = (tmp_path / line).resolve()
        assert path.exists(), line
        return path

    return run_main


def png_frames(folder):
    """uint8 (t, h, w, 3)."""
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


@pytest.fixture(scope="module")
def frames_of_seed_7(tiny_checkpoint):
    """The pipeline's own frames in PyNative mode, without the command around it."""
    pipeline = SVDPipeline(str(PROJECT / "configs" / "svd_tiny.yaml"), str(tiny_checkpoint), **SMALL)
    return pipeline(read_image(TIGER), seed=7)


def test_the_command_writes_what_the_pipeline_makes(run, frames_of_seed_7, tiny_checkpoint):
    (folder,) = run("--image", str(TIGER), "--seed=7", "--output_format=png", "--mode=1")
    frames = png_frames(folder)
    assert frames.shape == (2, 64, 128, 3) and frames.std() > 5
    assert np.array_equal(frames, frames_of_seed_7)
    assert re.fullmatch(r"tiger_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_seed7", folder.name)
    settings = read_metadata(folder)
    assert settings["seed"] == 7 and settings["image"] == "tiger.jpg" and settings["device_target"] == "CPU"
    assert settings["SVD"]["checkpoint_sha256"] == file_sha256(tiny_checkpoint)
    assert {name: settings["SVD"][name] for name in SMALL} == SMALL
    assert settings["SVD"]["config"] == "configs/svd_tiny.yaml" and settings["SVD"]["offload"] is False


def test_graph_mode_gives_the_same_frames(run, frames_of_seed_7):
    (folder,) = run(f"--image={TIGER}", "--seed=7", "--output_format=png", "--mode=0")
    assert np.abs(png_frames(folder).astype(int) - frames_of_seed_7).max() <= 1
    assert read_metadata(folder)["mode"] == 0


def test_yaml_flags_offload_and_mp4(run, frames_of_seed_7, tmp_path):
    (tmp_path / "flags.yaml").write_text(f"image: {TIGER}\nseed: 1\nSVD:\n  decode_chunk_size: 1\n  fps: 12\n")
    (path,) = run(f"--config={tmp_path / 'flags.yaml'}", "--seed=7", "--SVD.offload")
    settings = read_metadata(path)
    assert (settings["seed"], settings["SVD"]["fps"], settings["SVD"]["decode_chunk_size"]) == (7, 12, 1)
    assert settings["SVD"]["offload"] is True
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12)
        assert [(frame.width, frame.height) for frame in container.decode(stream)] == [(128, 64)] * 2


@pytest.mark.parametrize("video_format", ["mp4", "gif", "webp", "png"])
def test_a_video_s_settings_make_the_same_bytes_from_anywhere(run, tmp_path, monkeypatch, video_format):
    flags = [f"--image={TIGER}", f"--output_format={video_format}", "--SVD.like=diffusers", "--SVD.schedule=ays"]
    (path,) = run(*flags, "--SVD.guidance_interval=0.5,800", "--SVD.guider=triangle", "--SVD.max_cfg=2", "--seed=5")
    first = sorted(path.glob("*.png"))[0] if path.is_dir() else path
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = shutil.copy(TIGER, elsewhere)
    monkeypatch.chdir(elsewhere)
    main([f"--config={first}", f"--image={moved}", f"--output_dir={elsewhere / 'out'}"])
    (again,) = (elsewhere / "out").iterdir()
    pairs = [(path, again)] if path.is_file() else list(zip(sorted(path.iterdir()), sorted(again.iterdir())))
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs) and len(pairs) in (1, 2)


def test_a_checkpoint_that_has_changed_is_noticed(run):
    with pytest.raises(UserError, match=r"--SVD\.checkpoint: .* is not the file of --SVD\.checkpoint_sha256"):
        run(f"--image={TIGER}", f"--SVD.checkpoint_sha256={'0' * 64}")


def test_a_folder_gives_a_video_per_image_and_names_the_failures(run, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(TIGER, images / "b.jpg")
    transparent = np.zeros((50, 50, 4), np.uint8)
    Image.fromarray(transparent).save(images / "a.png")
    (images / "broken.png").write_bytes(b"")
    (images / "cut.jpg").write_bytes(TIGER.read_bytes()[:2000])
    with pytest.raises(UserError) as error:
        run(f"--image={images}", "--output_format=webp", "--background=black", "--SVD.sampling_steps=1")
    assert re.match(r"2 of 4 images failed: .*broken\.png: the file is empty; .*cut\.jpg: ", str(error.value))
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name[:2] for path in written] == ["a_", "b_"]
    assert [line.rsplit("/", 1)[1] for line in capsys.readouterr().out.splitlines()] == [path.name for path in written]
    for path in written:
        with Image.open(path) as video:
            assert (video.n_frames, video.size) == (2, (128, 64))
        assert read_metadata(path)["background"] == "black"


def test_it_runs_from_anywhere(tiny_checkpoint, tmp_path):
    command = [sys.executable, str(PROJECT / "image_to_video.py"), f"--image={TIGER}", "--output_format", "gif"]
    command += [f"--SVD.checkpoint={tiny_checkpoint}", *SMALL_FLAGS]  # the configuration is the project's own
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    path = tmp_path / result.stdout.splitlines()[-1]
    assert path.parent == tmp_path / "output" and path.suffix == ".gif"
    assert read_metadata(path)["seed"] == 42 and list(path.parent.iterdir()) == [path]


def test_nothing_is_overwritten(run, stand_in, monkeypatch):
    stand_in(np.zeros((2, 64, 64, 3), np.uint8))
    monkeypatch.setattr("image_to_video.datetime", Noon)
    names = [run(f"--image={TIGER}")[0].name for _ in range(3)]
    stem = "tiger_2026-01-02_12-00-00_seed42"
    assert names == [f"{stem}.mp4", f"{stem}_2.mp4", f"{stem}_3.mp4"]


@pytest.mark.parametrize("video_format", ["mp4", "gif", "webp", "png"])
def test_long_and_odd_names(run, stand_in, tmp_path, video_format):
    stand_in(np.zeros((2, 64, 64, 3), np.uint8))
    image = make_output_dir(tmp_path / "with space", "") / f"-{'ü' * 120}.v1.jpg"
    shutil.copy(TIGER, image)
    (path,) = run("--image", str(image), f"--output_format={video_format}")
    assert path.name.startswith("-üü") and read_metadata(path)["image"] == image.name


class Noon:
    """A clock that stands still."""

    @staticmethod
    def now():
        from datetime import datetime

        return datetime(2026, 1, 2, 12)
