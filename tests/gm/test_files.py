"""The doors to the disk: what is opened, what is replaced, what is left behind."""

import os
import socket

import pytest

from gm.files import open_input, read_text


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
