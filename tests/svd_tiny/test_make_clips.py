"""make_clips.py as a user runs it: on a folder of pictures, to videos that are read back."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.metadata_csv import read_metadata as read_rows_of
from data.motion import motion_bucket
from data.video_metrics import mean_flow, psnr
from data.video_reader import VideoReader
from data.video_writer import read_metadata
from gm.errors import UserError
from svd_tiny import make_clips
from svd_tiny.clip_plan import film, parse_weights, plan_clips
from svd_tiny.clip_renderer import ClipSize
from svd_tiny.photos import find_photos, held_out, name_held_out

SMALL = ["--height=64", "--width=96", "--frames=6", "--workers=1"]


def write_photo(path, seed):
    """A picture with coarse and fine detail, 200 x 300."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (10, 15, 3)).astype(np.uint8)).resize((300, 200), Image.BICUBIC)
    fine = rng.normal(0, 6, (200, 300, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(("train/one.png", "train/deep/two.jpg", "eval/three.png")):
        write_photo(folder / name, seed)
    return folder


def run(photos, out, *flags):
    make_clips.main([f"--photos={photos}", f"--output_dir={out}", *SMALL, *flags])
    return {path.name: path.read_bytes() for path in sorted(out.glob("clip_*"))}


def test_clips_are_videos_at_the_speed_of_the_list(photos, tmp_path, capsys):
    clips = run(photos, tmp_path, "--clips=5", "--moves=pan,zoom_in", "--min_speed=0.1")
    assert list(clips) == [f"clip_{index:06d}.mp4" for index in range(5)]
    assert "5 clips of 2 photographs" in capsys.readouterr().out
    with open(tmp_path / "clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["speed"] for row in rows}) == 5
    for row in rows:
        with VideoReader(tmp_path / row["path"]) as reader:
            assert (reader.num_frames, reader.fps) == (6, pytest.approx(7))
            frames = reader.read_clip(0, 6)
        assert frames.shape == (6, 64, 96, 3)
        assert mean_flow(frames, 7) == pytest.approx(float(row["speed"]), rel=0.35)
        assert abs(int(row["motion_bucket_id"]) - motion_bucket(float(row["speed"]))) < 25
        about = read_metadata(tmp_path / row["path"])
        assert about["move"] == row["move"] and about["photo"] == Path(row["photo"]).name


def test_training_reads_the_metadata(photos, tmp_path):
    run(photos, tmp_path, "--clips=3", "--moves=static,pan")
    rows = read_rows_of(tmp_path, tmp_path / "metadata.csv", "--data_dir", "--metadata")
    with open(tmp_path / "clips.csv", newline="") as file:
        for row, clip in zip(rows, csv.DictReader(file)):
            assert (row.path, row.length, row.motion_bucket_id) == (clip["path"], 6, float(clip["motion_bucket_id"]))
            assert clip["move"] != "static" or row.motion_bucket_id < 4


def test_video_and_arrays_hold_the_same_clip(photos, tmp_path):
    run(photos, tmp_path / "mp4", "--clips=1")
    run(photos, tmp_path / "npz", "--clips=1", "--format=npz")
    with np.load(tmp_path / "npz" / "clip_000000.npz") as arrays:
        frames = arrays["frames"]
        assert arrays["fps"] == 7
    with VideoReader(tmp_path / "mp4" / "clip_000000.mp4") as reader:
        assert psnr(reader.read_clip(0, 6), frames) > 28


def test_a_stopped_run_goes_on_to_the_same_clips(photos, tmp_path):
    whole = run(photos, tmp_path / "whole", "--clips=4")
    run(photos, tmp_path / "parts", "--clips=2")
    (tmp_path / "parts" / "clip_000000.mp4").unlink()
    kept = (tmp_path / "parts" / "clip_000001.mp4").stat().st_mtime_ns
    assert run(photos, tmp_path / "parts", "--clips=4") == whole
    assert (tmp_path / "parts" / "clip_000001.mp4").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_workers_change_nothing(photos, tmp_path):
    assert run(photos, tmp_path / "a", "--clips=6") == run(photos, tmp_path / "b", "--clips=6", "--workers=2")


def test_other_settings_are_not_mixed_into_a_folder(photos, tmp_path):
    run(photos, tmp_path, "--clips=1")
    with pytest.raises(UserError, match=r"--output_dir: .*other settings \(fps, seed\)"):
        run(photos, tmp_path, "--clips=1", "--fps=8", "--seed=3")
    assert json.loads((tmp_path / "settings.json").read_text())["fps"] == 7


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--split=test", "--split: test cannot be used; expected one of train, eval, all"),
        ("--height=70", "--height: 70 cannot be used; expected a multiple of 8 from 8 to 2048, such as 72"),
        ("--moves=wobble", "--moves: wobble is none of"),
        ("--moves=pan=x", "--moves: x is no number"),
        ("--moves=pan=-1", "--moves: the weight of pan is -1"),
        ("--max_speed=0.002", "--min_speed, --max_speed: 0.003 and 0.002; they must rise"),
        ("--frames=10000000000", "--frames: 10000000000 cannot be used; expected a whole number from 1 to 256"),
        ("--format=gif", "--format: gif cannot be used; expected one of mp4, npz"),
        ("--frames=0", "--frames: 0 cannot be used"),
        ("--fps=0", "--fps: 0"),
        ("--photos=nowhere", "--photos: nowhere is no folder"),
    ],
)
def test_mistakes_are_named(photos, tmp_path, flag, message):
    with pytest.raises(UserError) as error:
        make_clips.main([f"--photos={photos}", f"--output_dir={tmp_path}", *SMALL, flag])
    assert message in str(error.value)
    assert not list(tmp_path.glob("clip_*"))


def test_folder_without_photographs_is_named(tmp_path):
    with pytest.raises(UserError, match="--photos: no photograph for --split eval"):
        find_photos(tmp_path, "eval", "--photos")


def test_splits_are_disjoint_and_complete(photos):
    sides = {split: find_photos(photos, split, "--photos") for split in ("train", "eval", "all")}
    assert [path.name for path in sides["eval"]] == ["three.png"]
    assert sorted(sides["train"] + sides["eval"]) == sides["all"]


def test_hash_decides_where_no_folder_does():
    assert name_held_out("sky_badlands0") and not name_held_out("sky_badlands2")  # fixed for ever
    assert held_out(Path("sky_badlands0.jpg")) and not held_out(Path("train/sky_badlands0.jpg"))
    assert held_out(Path("train/eval/anything.jpg"))
    share = np.mean([name_held_out(f"photo_{index}") for index in range(4000)])
    assert share == pytest.approx(1 / 16, abs=0.015)


def test_a_plan_grows_without_changing(photos):
    found = find_photos(photos, "all", "--photos")
    plans = plan_clips(found, 800, parse_weights(""), 0.01, 0.25, seed=1)
    assert plan_clips(found, 40, parse_weights(""), 0.01, 0.25, seed=1) == plans[:40]
    assert plan_clips(found, 40, parse_weights(""), 0.01, 0.25, seed=2) != plans[:40]
    counts = [sum(plan.photo == photo for plan in plans) for photo in found]
    assert max(counts) - min(counts) <= 1
    speeds = [plan.speed for plan in plans if plan.kind != "static"]
    assert all(plan.speed == 0 for plan in plans if plan.kind == "static")
    levels, _ = np.histogram([motion_bucket(speed) for speed in speeds], bins=8)
    assert levels.min() > 0.8 * levels.max()


def test_same_plan_gives_the_same_pixels(photos):
    plan = plan_clips(find_photos(photos, "train", "--photos"), 3, parse_weights("mixed"), 0.1, 0.2, seed=0)[2]
    size = ClipSize(64, 96, 3)
    np.testing.assert_array_equal(film(plan, size, 7), film(plan, size, 7))
