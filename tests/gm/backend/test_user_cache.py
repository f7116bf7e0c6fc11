"""Caches hold what is run: nobody else may have written there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gm.backend import user_cache
from gm.backend.user_cache import cache_folder

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    user_cache._made.cache_clear()
    yield tmp_path
    user_cache._made.cache_clear()


def test_a_folder_of_the_user_alone(base):
    folder = cache_folder("kernels")
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}


def test_one_made_by_an_earlier_release_is_closed_to_others(base):
    (base / "mindspore_svd").mkdir(mode=0o755)
    assert cache_folder("kernels").parent.stat().st_mode & 0o777 == 0o700


def writable(path):
    path.chmod(0o777)


def foreign(path):
    os.chown(path, 12345, -1)


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "harm", [writable, linked, pytest.param(foreign, marks=pytest.mark.skipif(os.geteuid() != 0, reason="takes root"))]
)
@pytest.mark.parametrize("inner", [False, True])
def test_one_that_others_may_have_written_to_is_not_used(base, caplog, harm, inner):
    folder = cache_folder("kernels")
    user_cache._made.cache_clear()
    harm(folder if inner else folder.parent)
    assert cache_folder("kernels") is None
    assert "remove it" in caplog.text


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_loops_are_not_read_from_a_folder_that_others_may_write_to(tmp_path, mode):
    code = "from gm.backend.kernels import threads, updates; print(threads.numba.config.CACHE_DIR)"
    folder = tmp_path / "numba"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        for path in folder.iterdir():
            path.chmod(mode)
    assert ("others may write" in result.stderr) == (mode == 0o777)
