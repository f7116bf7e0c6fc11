import json
import os
import re
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from data import mp4_writer
from data.video_writer import (
    WRITERS,
    check_video_format,
    new_video_path,
    read_metadata,
    settings_in,
    write_picture,
    write_video,
)
from gm.errors import UserError

PROJECT = Path(__file__).parents[2]
SETTINGS = {"seed": 42, "image": 'grüße "a";=#\\\n.png', "SVD": {"fps": 7, "sampler": None, "min_cfg": 1.5}}


def video_path(folder, stem, video_format):
    with new_video_path(folder, stem, video_format) as path:
        return path


def moving_picture(num_frames, height, width):
    """uint8 (t, h, w, 3): smooth colours that move 2 pixels a frame."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    canvas = cv2.resize(coarse, (width + 2 * num_frames, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([canvas[:, 2 * t : 2 * t + width] for t in range(num_frames)])


def read_back(path):
    """The frames (t, h, w, 3) and what they last, in seconds."""
    if path.is_dir():
        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.iterdir())]), None
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [bt709_to_rgb(frame) for frame in container.decode(stream)]
            return np.stack(frames), float(stream.duration * stream.time_base)
    frames, seconds = [], 0.0
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            seconds += image.info["duration"] / 1000
    return np.stack(frames), seconds


def bt709_to_rgb(frame):
    """yuv420p video frame -> uint8 (h, w, 3), by the formulas of ITU-R BT.709, limited range."""
    planes = frame.to_ndarray(format="yuv420p").astype(np.float64)  # y over u over v
    height, width = frame.height, frame.width
    luma = (planes[:height] - 16) / 219
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    blue, red = ((cv2.resize(plane, (width, height)) - 128) / 224 for plane in chroma)
    r, b = luma + 1.5748 * red, luma + 1.8556 * blue
    g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
    return np.clip(np.rint(np.stack([r, g, b], -1) * 255), 0, 255).astype(np.uint8)


def probe(path):
    """What ffmpeg says about a file."""
    command = [mp4_writer.imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("video_format", WRITERS)
def test_frames_time_and_settings_come_back(tmp_path, video_format):
    frames = moving_picture(14, 64, 128)
    path = video_path(tmp_path, "v", video_format)
    write_video(frames, path, 7, SETTINGS, video_format)
    back, seconds = read_back(path)
    assert back.shape == frames.shape
    assert seconds is None or seconds == pytest.approx(2, abs=0.005)
    error = np.abs(back.astype(int) - frames)
    limits = {"mp4": (2, 16), "gif": (8, 110), "webp": (0, 0), "png": (0, 0)}
    assert error.mean() <= limits[video_format][0] and error.max() <= limits[video_format][1]
    assert np.abs((back.astype(float) - frames).mean((0, 1, 2))).max() < 0.5  # no shift in brightness or colour
    assert read_metadata(path) == SETTINGS
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("video_format", WRITERS)
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 65, 64), (2, 64, 63), (3, 17, 15), (2, 1, 1)])
def test_one_frame_and_odd_sizes(tmp_path, video_format, shape):
    frames = moving_picture(*shape)
    path = video_path(tmp_path, "v", video_format)
    write_video(frames, path, 7, SETTINGS, video_format)
    back, seconds = read_back(path)
    height, width = shape[1:]
    assert seconds is None or len(back) == 1 or seconds == pytest.approx(shape[0] / 7, abs=0.01)
    assert back.shape[1:3] == ((height + height % 2, width + width % 2) if video_format == "mp4" else (height, width))
    error = np.abs(back[0, :height, :width].astype(int) - frames[0])  # padded at the edge, not squashed
    assert error.mean() <= (10 if video_format in ("mp4", "gif") else 0)
    assert read_metadata(path) == SETTINGS


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)])
def test_mp4_colours_and_range_are_right(tmp_path, colour):
    frames = np.full((3, 64, 64, 3), colour, np.uint8)
    write_video(frames, tmp_path / "v.mp4", 7, {}, "mp4")
    assert np.abs(read_back(tmp_path / "v.mp4")[0].astype(int) - colour).max() <= 2


def test_mp4_is_what_browsers_play(tmp_path):
    write_video(moving_picture(14, 64, 128), tmp_path / "v.mp4", 7, SETTINGS, "mp4")
    said = probe(tmp_path / "v.mp4")
    assert re.search(r"Video: h264 \(High\).* yuv420p\(tv, bt709, progressive\), 128x64.* 7 fps", said), said
    content = (tmp_path / "v.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # the index comes first: it plays while it loads
    assert re.search(r"comment +: \{\"seed\": 42", said)


def test_the_same_frames_give_the_same_mp4(tmp_path):
    frames = moving_picture(5, 64, 64)
    for name in ("a.mp4", "b.mp4"):
        write_video(frames, tmp_path / name, 7, SETTINGS, "mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("fps", [1, 5, 24, 30, 12.5])
def test_frame_rates(tmp_path, fps):
    frames = moving_picture(20, 16, 16)
    for video_format in ("mp4", "gif", "webp"):
        path = tmp_path / f"v.{video_format}"
        write_video(frames, path, fps, {}, video_format)
        back, seconds = read_back(path)
        assert len(back) == 20 and seconds == pytest.approx(20 / fps, abs=0.006)
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(fps).limit_denominator(1000)


def test_still_frames_last_as_long(tmp_path):
    frames = np.full((14, 32, 32, 3), 99, np.uint8)
    frames[7] = 11
    for video_format in ("mp4", "gif", "webp"):
        path = tmp_path / f"v.{video_format}"
        write_video(frames, path, 7, SETTINGS, video_format)
        assert read_back(path)[1] == pytest.approx(2, abs=0.005) and read_metadata(path) == SETTINGS


def test_still_parts_of_a_gif_do_not_flicker(tmp_path):
    frames = moving_picture(6, 64, 128)
    frames[:, :32] = frames[0, :32]
    write_video(frames, tmp_path / "v.gif", 7, {}, "gif")
    back = read_back(tmp_path / "v.gif")[0]
    assert (back[1:, :30] == back[:-1, :30]).all() and (back[1:, 40:] != back[:-1, 40:]).any()


def test_a_file_from_elsewhere_does_not_say_where_to_write(tmp_path):
    for settings in (SETTINGS, {**SETTINGS, "output_dir": "/elsewhere"}):
        write_picture(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png", settings)
        if settings == SETTINGS:
            assert settings_in(tmp_path / "a.png") == SETTINGS and settings_in(tmp_path / "a.yaml") is None
        else:
            with pytest.raises(UserError, match="names a folder to write to"):
                settings_in(tmp_path / "a.png")


def test_settings_in_a_file_that_lies_about_its_size(tmp_path):
    """A PNG that says it is 60000 pixels wide and high, in less than 100 bytes."""
    write_picture(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png", SETTINGS)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match="it is damaged, or too large"):
        settings_in(tmp_path / "a.png")


def test_long_settings(tmp_path):
    settings = {f"key{index}": "x" * 40 for index in range(1000)}
    for video_format in WRITERS:
        path = video_path(tmp_path, "v", video_format)
        write_video(moving_picture(2, 16, 16), path, 7, settings, video_format)
        assert read_metadata(path) == settings


def test_paths_are_new_ones(tmp_path):
    names = []
    for _ in range(3):
        path = video_path(tmp_path, "cat.v1", "mp4")
        path.write_bytes(b"x")
        names.append(path.name)
    assert names == ["cat.v1.mp4", "cat.v1_2.mp4", "cat.v1_3.mp4"]
    (tmp_path / "cat").mkdir()
    assert video_path(tmp_path, "cat", "png").name == "cat_2"


@pytest.mark.parametrize("video_format", WRITERS)
@pytest.mark.parametrize("folder", ["-x", "pipe:a", "50%d [1] 'q'"])
def test_folders_of_any_name(tmp_path, monkeypatch, folder, video_format):
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    path = video_path(folder, "v%03d", video_format)
    write_video(moving_picture(2, 16, 16), path, 7, SETTINGS, video_format)
    assert read_metadata(path) == SETTINGS and list(Path(folder).iterdir()) == [path]


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match="--output_format: avi is none of mp4, gif, webp, png"):
        check_video_format("avi", 7)
    with pytest.raises(UserError, match="gif shows at most 50 frames per second"):
        check_video_format("gif", 60)
    check_video_format("gif", 50)
    for frames in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="frames must be"):
            write_video(frames, tmp_path / "v.mp4", 7, {}, "mp4")
    assert not list(tmp_path.iterdir())


def test_files_without_settings(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.gif", comment=b"[1, 2]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.mp4").write_bytes(b"no video")
    for name, message in {"a.png": "holds no settings", "b.gif": "holds no settings", "c.mp4": "cannot read"}.items():
        with pytest.raises(UserError, match=message):
            read_metadata(tmp_path / name)
    for name in ("empty", "none.mp4", "none.gif"):
        with pytest.raises(UserError, match=f"{name}"):
            read_metadata(tmp_path / name)


def test_a_missing_ffmpeg_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-ffmpeg"))
    monkeypatch.setattr(mp4_writer.imageio_ffmpeg, "get_ffmpeg_exe", lambda: os.environ["IMAGEIO_FFMPEG_EXE"])
    with pytest.raises(UserError, match="ffmpeg does not start.*reinstall imageio-ffmpeg"):
        write_video(moving_picture(1, 8, 8), tmp_path / "v.mp4", 7, {}, "mp4")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of its own with 64 KiB of room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("video_format", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_nothing(full_disk, video_format):
    noise = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="^cannot write .*: no room left on the disk$"):
        write_video(noise, video_path(full_disk, "v", video_format), 7, SETTINGS, video_format)
    assert not list(full_disk.iterdir())


WRITE_BEYOND_A_LIMIT = """
import resource, sys
import numpy as np
from data.video_writer import write_video
from gm.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
frames = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), dtype=np.uint8)
try:
    write_video(frames, sys.argv[1], 7, {}, sys.argv[2])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("video_format", WRITERS)
def test_a_file_size_limit_is_one_line_and_leaves_nothing(tmp_path, video_format):
    path = video_path(tmp_path, "v", video_format)
    command = [sys.executable, "-c", WRITE_BEYOND_A_LIMIT, str(path), video_format]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    assert re.match(r"cannot write .*: .+\n$", result.stdout) and not result.stderr, result
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("video_format", WRITERS)
def test_unwritable_places_are_one_line(tmp_path, video_format):
    with pytest.raises(UserError, match="^cannot write /proc/v"):
        write_video(moving_picture(1, 16, 16), video_path("/proc", "v", video_format), 7, {}, video_format)
    if video_format != "png":  # whose folder is made, parents included
        with pytest.raises(UserError, match=r"^cannot write .*none/v\.\w+: No such file or directory$"):
            write_video(moving_picture(1, 16, 16), tmp_path / "none" / f"v.{video_format}", 7, {}, video_format)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_video(moving_picture(2, 16, 16), tmp_path / "v.gif", 7, {"seed": 1}, "gif")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match="no room left"):
        write_video(moving_picture(2, 16, 16), tmp_path / "v.gif", 7, {"seed": 2}, "gif")
    assert read_metadata(tmp_path / "v.gif") == {"seed": 1} and len(list(tmp_path.iterdir())) == 1


def test_settings_are_plain_json_to_other_programs(tmp_path):
    write_video(moving_picture(2, 16, 16), tmp_path / "v", 7, SETTINGS, "png")
    write_video(moving_picture(2, 16, 16), tmp_path / "v.webp", 7, SETTINGS, "webp")
    for frame in sorted((tmp_path / "v").iterdir()):
        assert json.loads(Image.open(frame).text["Comment"]) == SETTINGS
    assert json.loads(Image.open(tmp_path / "v.webp").getexif()[0x010E]) == SETTINGS
