import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.motion import Motion, Piece, motion_bucket
from data.motion_journal import METHOD, Finding, Journal
from data.video_dataset import VideoDataset
from gm.errors import UserError
from svd_tools import score_motion
from tests.data.synthetic_videos import pan, write_cut_off, write_video
from tests.e2e.training import free_port

SCRIPT = Path(score_motion.__file__)
SPEEDS = {"still.mp4": 0.0, "slow, calm.mp4": 0.02, "sub/middle.mkv": 0.06, "sub/deep/fast.mp4": 0.2}
HEIGHT, FPS = 96, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "sub" / "deep").mkdir(parents=True)
    for name, speed in SPEEDS.items():
        write_video(folder / name, pan(30, HEIGHT, 160, speed * HEIGHT / FPS), fps=Fraction(FPS))
    write_cut_off(folder / "broken.mp4")
    (folder / ".hidden.mp4").write_text("passed over")
    (folder / "notes.txt").write_text("passed over")
    return folder


@pytest.fixture
def run(folder, tmp_path, capsys):
    def run(*flags, videos=folder, output=tmp_path / "videos.csv"):
        score_motion.main([f"--videos={videos}", f"--output={output}", "--workers=1", *flags])
        return rows(output), capsys.readouterr().out

    return run


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_a_training_csv(folder, run, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        table, out = run()
    assert list(table[0]) == ["path", "length", "motion_bucket_id", "score", "fps", "width", "height"]
    assert [row["path"] for row in table] == ["slow, calm.mp4", "still.mp4", "sub/middle.mkv", "sub/deep/fast.mp4"]
    for row in table:
        assert (row["length"], float(row["fps"]), row["width"], row["height"]) == ("30", FPS, "160", str(HEIGHT))
        assert float(row["score"]) == pytest.approx(SPEEDS[row["path"]], rel=0.1, abs=0.002)
        assert int(row["motion_bucket_id"]) == motion_bucket(float(row["score"]))
    assert "left out broken.mp4: " in caplog.text
    assert f"wrote {tmp_path / 'videos.csv'}: 4 videos" in out and "1 broken and 0 static" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["videos.csv", "videos.csv.journal", "videos.png"]

    dataset = VideoDataset(folder, tmp_path / "videos.csv", frames=4, step=2, height=64, width=64)
    assert dataset.sample(0, 3)["motion_bucket_id"] == int(table[3]["motion_bucket_id"])


def test_workers_change_nothing(run, tmp_path):
    one, _ = run()
    two, _ = run("--workers=2", output=tmp_path / "again" / "videos.csv")
    assert one == two


def test_a_csv_of_videos(folder, run, tmp_path, caplog):
    (tmp_path / "list.csv").write_text('caption,path\nx,sub/middle.mkv\n\ny,"slow, calm.mp4"\nz,gone.mp4\n')
    with caplog.at_level(logging.WARNING):
        table, _ = run(f"--data_dir={folder}", videos=tmp_path / "list.csv")
    assert [row["path"] for row in table] == ["sub/middle.mkv", "slow, calm.mp4"]
    assert "left out gone.mp4: " in caplog.text and "No such file" in caplog.text


def test_paths_start_from_data_dir(folder, run):
    table, _ = run(f"--data_dir={folder}", videos=folder / "sub")
    assert [row["path"] for row in table] == ["sub/middle.mkv", "sub/deep/fast.mp4"]


def test_the_stillest_share_is_left_out(run):
    table, out = run("--drop_static=0.5")
    assert [row["path"] for row in table] == ["sub/middle.mkv", "sub/deep/fast.mp4"]
    assert "1 broken and 2 static" in out


def test_histogram(run, tmp_path):
    run(f"--histogram={tmp_path / 'picture.png'}", "--drop_static=0.25")
    image = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert image.shape == (540, 960, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20  # something is drawn


def test_without_matplotlib_the_csv_is_written_all_the_same(run, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    table, out = run()
    assert len(table) == 4 and ".png" not in out
    assert "matplotlib is not installed" in caplog.text


def test_a_second_run_scores_only_what_is_new(folder, run, monkeypatch, tmp_path):
    first, _ = run()
    examined = []
    examine = score_motion.examine
    monkeypatch.setattr(score_motion, "examine", lambda path, fps: examined.append(path.name) or examine(path))
    again, _ = run("--drop_static=0.25")
    assert examined == [] and again == [row for row in first if row["path"] != "still.mp4"]
    extra = write_video(folder / "extra.mp4", pan(12, HEIGHT, 160, 1.0), fps=Fraction(FPS))
    os.utime(folder / "still.mp4", ns=(1, 1))
    try:
        assert len(run()[0]) == 5
    finally:
        extra.unlink()
    assert examined == ["extra.mp4", "still.mp4"]


def test_several_processes_score_each_video_once(run, monkeypatch, tmp_path):
    """As msrun starts them: the second one's share first, then the first one, which writes the CSV file for both."""
    whole, _ = run(output=tmp_path / "whole.csv")
    output, examined = tmp_path / "shared.csv", []
    examine = score_motion.examine
    monkeypatch.setattr(score_motion, "examine", lambda path, fps: examined.append(path.name) or examine(path))
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    monkeypatch.setenv("RANK_ID", "1")
    with pytest.raises(FileNotFoundError):
        run(output=output)
    assert len(examined) == 2 and (tmp_path / "shared.csv.journal-1").exists()
    monkeypatch.setenv("RANK_ID", "0")
    assert run(output=output)[0] == whole
    assert len(examined) == len(set(examined)) == 5 and not (tmp_path / "shared.csv.journal-1").exists()
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    with pytest.raises(FileNotFoundError):
        run(output=tmp_path / "of_the_scheduler.csv")
    monkeypatch.delenv("MS_ROLE")
    monkeypatch.delenv("RANK_ID")
    with pytest.raises(UserError, match="--node_rank"):
        run(output=tmp_path / "other.csv")


@pytest.mark.slow
def test_two_workers_of_msrun_write_what_one_process_writes(folder, run, tmp_path):
    whole, _ = run()
    output = tmp_path / "together" / "videos.csv"
    command = [str(Path(sys.executable).with_name("msrun")), "--worker_num=2", "--local_worker_num=2", "--join=True"]
    command += [f"--master_port={free_port()}", f"--log_dir={tmp_path / 'msrun'}"]
    command += [str(SCRIPT), f"--videos={folder}", f"--output={output}"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert rows(output) == whole
    assert sorted(path.name for path in output.parent.iterdir()) == ["videos.csv", "videos.csv.journal", "videos.png"]


@pytest.mark.slow
def test_videos_without_end_are_found_again_at_once(tmp_path):
    """100,000 scored videos, twenty scores each; missing files stand in for them, as they have not changed."""
    names = [f"{number}.mp4" for number in range(100_000)]
    motion = [[[25 * i // 2, 25 * (i + 1) // 2, 0.123456] for i in range(20)]]
    finding = {"length": 250, "fps": 25.0, "height": 720, "width": 1280, "motion": motion, "error": ""}
    path = tmp_path / "videos.csv.journal"
    with open(path, "w") as file:
        file.write(json.dumps({"method": METHOD}) + "\n")
        file.writelines(json.dumps({"path": name, "stamp": None, "finding": finding}) + "\n" for name in names)
    started = time.process_time()
    found = score_motion.score_videos(tmp_path, names, Journal(path), 1)
    assert time.process_time() - started < 30
    assert len(found) == 100_000 and found["7.mp4"].motion.score() == pytest.approx(0.123456)


def test_killed_and_started_again_it_goes_on(tmp_path):
    videos = tmp_path / "many"
    videos.mkdir()
    for i in range(20):
        write_video(videos / f"{i:02}.mp4", pan(30, 192, 320, i / 5), fps=Fraction(FPS))
    output = tmp_path / "out" / "videos.csv"
    command = [sys.executable, str(SCRIPT), f"--videos={videos}", f"--output={output}", "--workers=2"]
    journal = Path(f"{output}.journal")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert sorted(p.name for p in output.parent.iterdir()) == ["videos.csv.journal"]
    done = journal.read_bytes().count(b"\n") - 1
    assert done < 20
    with open(journal, "a") as file:
        file.write('{"path": "19.mp4", "st')  # killed in the middle of a line
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert f"{done} of 20 videos are scored already" in again.stderr
    assert [row["path"] for row in rows(output)] == [f"{i:02}.mp4" for i in range(20)]
    fresh = tmp_path / "fresh.csv"
    score_motion.main([f"--videos={videos}", f"--output={fresh}", "--workers=1"])
    assert fresh.read_bytes() == output.read_bytes()


def test_workers_end_with_the_main_process(folder, tmp_path):
    import psutil

    command = [sys.executable, "-c", WAIT_FOREVER.format(root=str(SCRIPT.parents[1]))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


WAIT_FOREVER = """
import sys, time
sys.path.insert(0, {root!r})
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from svd_tools.score_motion import _start_worker
if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, get_context("spawn"), initializer=_start_worker)
    sleeping = [pool.submit(time.sleep, 0.5), pool.submit(time.sleep, 60)]
    sleeping[0].result()
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_dead_worker_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(score_motion, "_start_worker", os.abort)
    with pytest.raises(UserError, match=r"a worker process died while .*slow, calm\.mp4.*--workers"):
        score_motion.main([f"--videos={folder}", f"--output={tmp_path / 'v.csv'}", "--workers=2"])


def test_a_journal_of_another_method_is_not_used(tmp_path):
    video = tmp_path / "a.mp4"
    video.touch()
    journal = Journal(tmp_path / "j")
    finding = Finding(3, 25.0, 4, 5, Motion((Piece(0, 2, 0.1),)))
    journal.add("a.mp4", video, finding)
    assert Journal(tmp_path / "j").find("a.mp4", video) == finding
    lines = (tmp_path / "j").read_text().splitlines()
    (tmp_path / "j").write_text("\n".join([json.dumps({"method": {}}), *lines[1:]]) + "\n")
    assert Journal(tmp_path / "j").find("a.mp4", video) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--drop_static=1"], "--drop_static: 1"),
        (["--drop_static=-0.1"], "--drop_static: -0.1"),
        (["--workers=-1"], "--workers: -1"),
        (["--data_dir=nowhere"], "--data_dir: nowhere is no folder"),
        (["--videos=none.csv"], "--videos: cannot read none.csv"),
        (["--videos={empty}"], r"--videos: no video in .*\.mp4"),
        (["--data_dir={empty}"], "--data_dir: .* does not lie in"),
        (["--output={empty}"], "--output: .* is a folder"),
        (["--output=/proc/x/videos.csv"], "--output: cannot write in /proc/x"),
        (["--videos={bad}"], "no column path among file"),
        (["--videos={bad}", "--output={bad}"], "--output: .* is the list of videos itself"),
        (["--videos={only_broken}"], "all 1 videos are broken"),
    ],
)
def test_user_errors_are_one_line(folder, tmp_path, flags, message):
    places = {"empty": tmp_path / "empty", "bad": tmp_path / "bad.csv", "only_broken": tmp_path / "only_broken"}
    places["empty"].mkdir()
    places["bad"].write_text("file\nx.mp4\n")
    places["only_broken"].mkdir()
    (places["only_broken"] / "x.mp4").write_text("no video")
    flags = [flag.format(**places) for flag in flags]
    defaults = [f"--videos={folder}", f"--output={tmp_path / 'videos.csv'}", "--workers=1"]
    with pytest.raises(UserError, match=message) as caught:
        score_motion.main([*defaults, *flags])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "videos.csv").exists()


def test_the_command_line(folder, tmp_path):
    command = [sys.executable, str(SCRIPT), "--videos=nothing.csv", "--output=x.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --videos: cannot read nothing.csv") and done.stderr.count("\n") == 1


def test_numbered_frames_and_animations_are_scored(run, tmp_path, caplog):
    videos = tmp_path / "videos"
    (videos / "walk").mkdir(parents=True)
    frames = [Image.fromarray(frame) for frame in pan(30, HEIGHT, 160, 0.06 * HEIGHT / FPS)]
    for number, frame in enumerate(frames):
        frame.save(videos / "walk" / f"{number:03d}.png")
    frames[0].save(videos / "moves.webp", save_all=True, append_images=frames[1:], duration=80, lossless=True)
    frames[0].save(videos / "still.gif")
    with caplog.at_level(logging.INFO):
        table, _ = run(f"--fps={FPS}", videos=videos)
    assert [(row["path"], row["length"], row["fps"]) for row in table] == [
        ("moves.webp", "30", "12.5"), ("walk", "30", "12.0"),
    ]  # fmt: skip
    assert float(table[0]["score"]) == pytest.approx(0.06 * 12.5 / FPS, rel=0.1)
    assert float(table[1]["score"]) == pytest.approx(0.06, rel=0.1)
    assert "1 folders of numbered frames count as 12 frames per second" in caplog.text
    assert "passed over 1 files of other kinds" in caplog.text and "still.gif" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again, _ = run(f"--fps={2 * FPS}", videos=videos)
    assert float(again[1]["score"]) == pytest.approx(0.12, rel=0.1) and again[0] == table[0]
    assert "1 of 2 videos are scored already" in caplog.text  # the folder's rate is another one


def test_a_csv_s_odd_names_are_read_back(run, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    frames = pan(30, HEIGHT, 160, 0.06 * HEIGHT / FPS)
    for name in (" lead.mp4", "bad.mp4", "new\nline.mp4", "a;b,c.mp4"):
        write_video(videos / name, frames, fps=Fraction(FPS))
    os.rename(videos / "bad.mp4", os.fsencode(videos) + b"/bad\xff.mp4")
    table, out = run(videos=videos)
    assert [row["path"] for row in table] == [" lead.mp4", "a;b,c.mp4", "new\nline.mp4"] and "left out 1 broken" in out
    dataset = VideoDataset(videos, tmp_path / "videos.csv", frames=4, step=2, height=64, width=64)
    assert [row.path for row in dataset.rows] == [row["path"] for row in table]
