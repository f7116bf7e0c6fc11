"""The doors to the disk: what is opened, what is replaced, what is left behind."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gm.errors import UserError
from gm.files import (
    atomic_dir,
    atomic_file,
    cleared_if_refused,
    kept_room,
    make_output_dir,
    open_input,
    open_private,
    own_folder,
    parse_json,
    read_lines,
    read_text,
    remove_leftovers,
    reserved,
    size,
)

PROJECT = Path(__file__).parents[2]
UMASK = os.umask(0)
os.umask(UMASK)


def strange_files(folder):
    """Everything that a name may stand for, beside a regular file."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(folder / "target")
    (folder / "target").write_text("kept")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    return {"pipe": folder / "pipe", "directory": folder / "folder", "socket": folder / "socket", "device": "/dev/zero"}


@pytest.mark.timeout(20)
def test_only_regular_files_are_read_and_no_pipe_is_waited_for(tmp_path):
    for kind, path in strange_files(tmp_path).items():
        with pytest.raises(OSError, match=f"it is a .*{kind}"):
            open_input(path)
    with pytest.raises(FileNotFoundError):
        open_input(tmp_path / "gone")
    for name in ("nul\0", "\ud800", "x" * 300):
        with pytest.raises(OSError):
            open_input(tmp_path / name)
    assert read_text(tmp_path / "link") == "kept"


def test_a_text_file_has_a_bound(tmp_path):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than 64 MiB"):
        read_text(tmp_path / "huge")


def write(path, text="new"):
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def test_nothing_but_a_regular_file_is_replaced_or_followed(tmp_path):
    strange_files(tmp_path)
    before = sorted(os.listdir(tmp_path))
    for name in ("pipe", "folder", "link", "socket"):
        with pytest.raises(UserError, match=f"^cannot write {tmp_path / name}: it is a "):
            write(tmp_path / name)
        with pytest.raises(OSError, match="it is a "):
            open_private(tmp_path / name)
    with pytest.raises(UserError, match="^cannot write /dev/null: it is a device"):
        write("/dev/null")
    (tmp_path / "to_folder").symlink_to(tmp_path / "folder")
    with pytest.raises(UserError, match="exists already"), atomic_dir(tmp_path / "to_folder"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "to_folder"])
    assert (tmp_path / "target").read_text() == "kept"
    write(tmp_path / "target")
    assert (tmp_path / "target").read_text() == "new"


def test_temporary_names_are_new_ones_and_cannot_be_foretold(tmp_path):
    names = []
    for _ in range(2):
        with atomic_file(tmp_path / "a.png") as file, atomic_dir(tmp_path / "b") as folder:
            names += [file.name, folder.name]
            assert file.suffix == ".png" and file.stat().st_mode & 0o777 == 0o666 & ~UMASK
            assert file.parent == folder.parent == tmp_path
        (tmp_path / "b").rmdir()
    assert len(set(names)) == 4 and os.listdir(tmp_path) == ["a.png"]


def test_names_of_any_length(tmp_path):
    for name in ("é" * 125 + ".mp4", "x" * 255, "a." + "b" * 200, ".hidden"):
        write(tmp_path / name)
        assert (tmp_path / name).read_text() == "new"
    with pytest.raises(UserError, match="^cannot write .*: File name too long$"):
        write(tmp_path / ("x" * 256))


KILLED = """
import os, signal, sys
from pathlib import Path
from gm.files import atomic_dir, atomic_file
with atomic_dir(Path(sys.argv[1]) / "folder") as folder, atomic_file(Path(sys.argv[1]) / "file.bin") as file:
    (folder / "part").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    """What a living process writes stays, and so do folders that only look like ours."""
    foreign = [tmp_path / f".folder.tmp-{os.getpid()}", tmp_path / ".tmp-keep", tmp_path / ".x.tmp-0123456789abcdeg"]
    for folder in foreign:
        (folder / "inside").mkdir(parents=True)
    (tmp_path / ".l.tmp-0123456789abcdef").symlink_to(foreign[0])
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        there = set(os.listdir(tmp_path))
        remove_leftovers.cache_clear()
        make_output_dir(tmp_path, "--out")
        assert set(os.listdir(tmp_path)) == there and len(there) == 6
        process.kill()
    remove_leftovers.cache_clear()
    write(tmp_path / "other")
    assert {path.name for path in foreign} | {".l.tmp-0123456789abcdef", "other"} == set(os.listdir(tmp_path))


def test_a_name_is_kept_for_one_process(tmp_path):
    names = [tmp_path / "a.mp4", tmp_path / "a_2.mp4", tmp_path / "a_3.mp4"]
    names[0].touch()
    with reserved(names) as first, reserved(names) as second:
        assert [first, second] == names[1:]
    with reserved(names) as again:
        assert again == names[1]
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(("num_bytes", "text"), [(0, "0 bytes"), (4096, "4.10 kB"), (2e9, "2.00 GB")])
def test_sizes_have_the_unit_that_shows_them(num_bytes, text):
    assert size(num_bytes) == text


def test_a_refused_run_leaves_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(UserError), cleared_if_refused(folder, ["log"]):
        make_output_dir(folder, "--out")
        (folder / "log").touch()
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "log").touch()
    with pytest.raises(UserError), cleared_if_refused(folder, ["log", ".lock"]):
        (folder / ".lock").touch()
        (folder / "another's").touch()
        raise UserError("refused")
    assert sorted(path.name for path in folder.iterdir()) == ["another's", "log"]
    with pytest.raises(UserError), cleared_if_refused(tmp_path / "c") as begin:
        (tmp_path / "c").mkdir()
        begin()
        raise UserError("failed later")
    assert (tmp_path / "c").is_dir()


def test_a_name_that_is_too_long_is_told_when_it_is_reserved(tmp_path):
    with pytest.raises(UserError, match="File name too long"), reserved([tmp_path / ("x" * 300)]):
        pass
    assert os.listdir(tmp_path) == []


def test_room_is_kept_until_it_is_given_back(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with kept_room(tmp_path, 1 << 20, "it") as give_back:
        (kept,) = tmp_path.iterdir()
        assert kept.stat().st_blocks * 512 >= 1 << 20
        give_back()
        assert kept.stat().st_size == 0
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="^no room for it: it takes .* GB"), kept_room(tmp_path, 2 * free, "it"):
        pass


def test_a_folder_of_the_program_s_own_is_no_link(tmp_path):
    assert own_folder(tmp_path / "a" / "b").is_dir() and own_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="it is a symbolic link, which is not written through"):
        own_folder(tmp_path / "link")


def test_lines_of_a_log_that_broke_off(tmp_path):
    (tmp_path / "log").write_bytes(b"one\ntwo\xff\nth")
    assert list(read_lines(tmp_path / "log")) == ["one\n", "two\ufffd\n", "th"]
    with pytest.raises(OSError, match="it is no UTF-8 text"):
        read_text(tmp_path / "log")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}', "[-Infinity]", "1" * 5000, "", "{"])
def test_json_that_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)
