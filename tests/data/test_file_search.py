import logging

import pytest
from PIL import Image

from data.file_search import find_images, find_videos, numbered_frames, stamp


@pytest.fixture
def folder(tmp_path):
    for name in ("b.MP4", "sub/a.mov", "sub/.hidden.mp4", ".cache/x.mp4", "notes.txt", "sub/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for name in ("moves.gif", "moves.webp", "moves.png"):
        red.save(tmp_path / name, save_all=True, append_images=[blue], duration=40)
    for name in ("still.gif", "still.png", "thumb.jpg"):
        red.save(tmp_path / name)
    (tmp_path / "frames").mkdir()
    for i in (1, 2, 10):
        red.save(tmp_path / f"frames/{i}.jpg")
    return tmp_path


def test_videos_are_files_animations_and_folders_of_frames(folder, caplog):
    found = [path.as_posix() for path in find_videos(folder)]
    assert found == ["b.MP4", "moves.gif", "moves.png", "moves.webp", "frames", "sub/a.mov"]
    assert "passed over 5 files of other kinds" in caplog.text
    for name in ("notes.txt", "still.gif", "still.png", "thumb.jpg", "c.csv"):
        assert name in caplog.text


def test_a_search_names_kinds_where_files_are_many(tmp_path, caplog):
    for i in range(50):
        (tmp_path / f"{i}.txt").touch()
    (tmp_path / "a.tga").touch()
    (tmp_path / "odd\n\x1b[31m.raw").touch()
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in find_images(tmp_path)] == ["a.tga"]
    assert "passed over 51 files" in caplog.text and "50 *.txt" in caplog.text and "12.txt" not in caplog.text


@pytest.mark.parametrize(
    ("names", "frames"),
    [
        (["im2.png", "im10.png", "im1.png"], ["im1.png", "im2.png", "im10.png"]),
        (["f_001_l.jpg", "f_002_l.jpg", "notes.txt"], ["f_001_l.jpg", "f_002_l.jpg"]),
        (["001.png", "001.jpg"], []), (["a1.png", "b2.png"], []), (["1.png"], []), (["x.png", "y.png"], []),
        (["1.png", "2.png", "film.mp4"], []), ([], []),
    ],
)  # fmt: skip
def test_frames_differ_in_one_number_only(tmp_path, names, frames):
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in numbered_frames(tmp_path)] == frames


def test_numbered_animations_are_videos_each(folder, tmp_path):
    for i in range(3):
        (folder / "frames" / f"{i}.gif").write_bytes((folder / "moves.gif").read_bytes())
    for i in (1, 2, 10):
        (folder / "frames" / f"{i}.jpg").unlink()
    assert numbered_frames(folder / "frames") == []
    assert sum(path.parent.name == "frames" for path in find_videos(folder)) == 3


def test_a_stamp_changes_with_a_frame(folder):
    before = stamp(folder / "frames")
    (folder / "frames" / "2.jpg").write_bytes(b"other")
    assert stamp(folder / "frames") != before
