"""Animated pictures and folders of numbered frames as videos, against the ffmpeg command and the frames themselves."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from data.metadata_csv import read_metadata
from data.video_dataset import VideoDataset
from data.video_reader import VideoError, VideoReader

SHOWN_MS = [40, 120, 40, 200, 40, 40]


def moving(count=6):
    """A red square that goes right on transparent ground."""
    frames = []
    for i in range(count):
        frame = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
        frame.paste((255, 0, 0, 255), (i * 8, 8, i * 8 + 16, 24))
        frames.append(frame)
    return frames


def on_white(path):
    """What the ffmpeg command decodes, over white."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    command += ["-pix_fmt", "rgba", "-f", "rawvideo", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 4).astype(float)
    alpha = frames[..., 3:] / 255
    return frames[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((f"disposal{n}.gif", {"disposal": n, "loop": 0}) for n in range(4)), ("a.webp", {"lossless": True}),
     ("a.png", {"disposal": 1}), ("blend.png", {"blend": 1, "disposal": 1})],
)  # fmt: skip
def test_an_animation_is_what_ffmpeg_shows(tmp_path, name, options):
    first, *others = moving()
    first.save(tmp_path / name, save_all=True, append_images=others, duration=SHOWN_MS, **options)
    with VideoReader(tmp_path / name) as reader:
        assert reader.num_frames == 6 and reader.duration == pytest.approx(sum(SHOWN_MS) / 1000)
        assert reader.size == (48, 64)
        ends = np.cumsum(SHOWN_MS) / 1000
        half = 0.5 / reader.fps
        times = [0.0, 0.05, 0.19, 0.3, 0.42]
        expected = on_white(tmp_path / name)[np.searchsorted(ends, np.add(times, half), side="right")]
        assert np.abs(reader.read(times) - expected).max() <= 1
        assert np.abs(reader.read(times[:1]) - expected[:1]).max() <= 1  # and back
        with pytest.raises(VideoError, match="ends before"):
            reader.read([0.6])


def test_an_avif_animation(tmp_path):
    first, *others = [frame.convert("RGB") for frame in moving()]
    first.save(tmp_path / "a.avif", save_all=True, append_images=others, duration=40, quality=100, subsampling="4:4:4")
    with VideoReader(tmp_path / "a.avif") as reader:
        assert (reader.num_frames, reader.fps) == (6, pytest.approx(25))
        for shown, frame in zip(reader.read_clip(0, 6), [first, *others]):
            assert np.abs(shown.astype(int) - np.asarray(frame)).mean() < 3


def test_an_apng_s_default_image_and_hasty_frames(tmp_path):
    first, *others = moving()
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=40, default_image=True)
    with VideoReader(tmp_path / "a.png") as reader:
        assert reader.num_frames == 5  # the first picture is for programs that know no animations
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=0, loop=0)
    with VideoReader(tmp_path / "a.gif") as reader:
        assert reader.fps == pytest.approx(10)  # as browsers show it


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_a_still_picture_is_no_video(tmp_path, suffix):
    moving()[0].convert("RGB").save(tmp_path / f"a.{suffix}")
    with pytest.raises(VideoError, match=rf"a\.{suffix}: is a still picture"):
        VideoReader(tmp_path / f"a.{suffix}")


def test_a_damaged_animation(tmp_path):
    first, *others = [Image.effect_noise((64, 48), 90) for _ in range(6)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=40)
    whole = (tmp_path / "a.gif").read_bytes()
    for size in (5, 300, len(whole) // 2):
        (tmp_path / "a.gif").write_bytes(whole[:size])
        with pytest.raises(VideoError, match=r"a\.gif"), VideoReader(tmp_path / "a.gif") as reader:
            reader.read_clip(0, 6)


@pytest.fixture
def frames(tmp_path):
    """A folder of frames 8.png, 10.png, 12.png, …, in the order of their numbers."""
    folder = tmp_path / "walk"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.full((48, 64, 3), 40 * i, np.uint8)).save(folder / f"frame{2 * i + 8}.png")
    (folder / "about.txt").write_text("not a frame")
    return folder


def test_a_folder_of_numbered_frames_is_a_video(frames):
    with VideoReader(frames, fps=12.5) as reader:
        assert (reader.num_frames, reader.fps, reader.size) == (6, 12.5, (48, 64))
        assert reader.read_clip(1, 3, step=2)[:, 0, 0, 0].tolist() == [40, 120, 200]
    Image.new("RGB", (32, 32)).save(frames / "frame99.png")
    with VideoReader(frames) as reader, pytest.raises(VideoError, match="walk: the frame size changes"):
        reader.read_clip(0, 7)


def test_it_is_trained_on_at_the_rate_of_the_csv(frames, tmp_path, caplog):
    csv = tmp_path / "videos.csv"
    csv.write_text("path,length,motion_bucket_id,fps\nwalk,6,9,12.5\n")
    dataset = VideoDataset(tmp_path, csv, frames=3, step=2, height=64, width=64)
    sample = dataset.sample(0, 0)
    assert sample["fps"] == 6.25 and sample["frames"].shape == (3, 3, 64, 64)
    csv.write_text("path,length,motion_bucket_id\nwalk,6,9\n")
    assert read_metadata(tmp_path, csv, "", "")[0].fps is None
    assert "1 folders of frames count as 24 frames per second: no column fps" in caplog.text


def test_a_folder_without_numbered_frames_is_none(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a1.png")
    with pytest.raises(VideoError, match="is a folder without numbered frames"):
        VideoReader(tmp_path)
