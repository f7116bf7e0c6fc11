import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest

from gm.backend import memory as memory_limit

resource = pytest.importorskip("resource")
PROJECT = Path(__file__).parents[3]
MIB = 1 << 20
Memory = namedtuple("Memory", "available free")


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine has free, in bytes."""

    def set_free(num_bytes, swap=0):
        monkeypatch.setattr(memory_limit.psutil, "virtual_memory", lambda: Memory(num_bytes, num_bytes))
        monkeypatch.setattr(memory_limit.psutil, "swap_memory", lambda: Memory(swap, swap))
        monkeypatch.setattr(memory_limit, "CONTAINER_FILES", ())

    return set_free


@pytest.mark.skipif(not memory_limit.PROCESS_STATUS.exists(), reason="needs Linux")
def test_more_than_is_free_is_refused_and_the_limit_lifted_again(machine):
    machine(200 * MIB)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit.memory_limit():
        bytearray(100 * MIB)
        with pytest.raises(MemoryError):
            bytearray(400 * MIB)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    bytearray(400 * MIB)


def test_a_card_has_no_limit(machine):
    machine(200 * MIB)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit.memory_limit():
        assert resource.getrlimit(resource.RLIMIT_DATA) != before
        memory_limit.lift_memory_limit()
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_limit_is_lifted_after_an_error(machine):
    machine(200 * MIB)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(KeyError), memory_limit.memory_limit():
        raise KeyError
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_lower_limit_of_the_user_stays():
    script = """
        import resource
        from gm.backend.memory import memory_limit
        resource.setrlimit(resource.RLIMIT_DATA, (300_000_000, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        with memory_limit():
            print(resource.getrlimit(resource.RLIMIT_DATA)[0])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert output.stdout == "300000000\n"


@pytest.mark.parametrize(
    ("limit", "stat", "name", "expected"),
    [
        ("1000000\n", "file 5\nanon 400000\n", "anon", 600000),
        ("1000000\n", "rss 7\ntotal_rss 100\n", "total_rss", 999900),
        ("max\n", "anon 400000\n", "anon", 5000000),
        ("100\n", "anon 400000\n", "anon", 0),
        ("9223372036854771712\n", "total_rss 100\n", "total_rss", 5000000),
    ],
)
def test_a_container_has_less(machine, monkeypatch, tmp_path, limit, stat, name, expected):
    machine(4000000, swap=1000000)
    (tmp_path / "max").write_text(limit)
    (tmp_path / "stat").write_text(stat)
    monkeypatch.setattr(memory_limit, "CONTAINER_FILES", ((tmp_path / "max", tmp_path / "stat", name),))
    assert memory_limit.free_bytes() == expected


def test_no_container(machine, monkeypatch, tmp_path):
    machine(4000000)
    monkeypatch.setattr(memory_limit, "CONTAINER_FILES", ((tmp_path / "none", tmp_path / "none", "anon"),))
    assert memory_limit.free_bytes() == 4000000
