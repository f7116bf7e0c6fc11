"""How commands end: signals, readers that go away, full and closed outputs."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gm.errors import LineFormatter, shown

PROJECT = Path(__file__).parents[2]
COMMAND = """
import sys
from pathlib import Path
from gm.errors import run_command
from gm.files import atomic_dir, atomic_file

def main(argv):
    with atomic_dir(Path(sys.argv[1]) / "folder") as folder, atomic_file(Path(sys.argv[1]) / "file") as file:
        (folder / "part").write_text("half")
        for _ in range(3):
            sys.stdout.write("x" * 100_000 + "\\n")
            sys.stdout.flush()
        sys.stdin.read()

run_command(main)
"""


def start(folder, **options):
    command = [sys.executable, "-c", COMMAND, str(folder)]
    return subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_command_leaves_nothing_and_says_so(tmp_path, number):
    def hear():  # also where the tests themselves run under nohup
        signal.signal(number, signal.SIG_DFL)

    with start(tmp_path, stdout=subprocess.PIPE, preexec_fn=hear) as process:
        for _ in range(3):
            process.stdout.readline()
        assert len(os.listdir(tmp_path)) == 2
        process.send_signal(number)
        errors = process.communicate()[1]
    assert process.returncode == 128 + number and os.listdir(tmp_path) == []
    assert errors.startswith("interrupted") and errors.count("\n") == 1


DEAF = """
import os, signal, sys, time
from contextlib import suppress
from gm.errors import run_command

def main(argv):
    with suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    sys.stderr.write("goes on\\n")

run_command(main)
"""


def test_a_signal_is_told_where_its_exception_was_swallowed():
    result = subprocess.run([sys.executable, "-c", DEAF], cwd=PROJECT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (143, "interrupted (SIGTERM)\ngoes on\n")


IMPORTING = "from gm.errors import run_command\ndef main(argv):\n    import slow\n    slow.wait()\nrun_command(main)"


def test_a_signal_waits_for_the_end_of_an_import(tmp_path):
    body = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\nprint('imported')\n"
    (tmp_path / "slow.py").write_text(body + "def wait():\n    time.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", IMPORTING]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (143, "imported\n", "interrupted (SIGTERM)\n")


def test_nohup_is_respected(tmp_path):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with start(tmp_path, stdout=subprocess.PIPE, preexec_fn=ignore) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.communicate("go on")
    assert process.returncode == 0 and sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    ("output", "code"), [("| head -c 1 > /dev/null", 0), ("> /dev/full", 2), (">&-", 0), ("2>&-", 0)]
)
def test_work_is_done_whoever_reads(tmp_path, output, code):
    line = f'set -o pipefail; {sys.executable} -c "$0" {tmp_path} < /dev/null {output}'
    result = subprocess.run(["bash", "-c", line, COMMAND], cwd=PROJECT, capture_output=True, text=True)
    assert (result.returncode, sorted(os.listdir(tmp_path))) == (code, ["file", "folder"])
    expected = "error: the standard output cannot be written: No space left on device; all files are written\n"
    assert result.stderr == (expected if code else "")


NOISY = """
import os, subprocess, sys
from gm.errors import run_command

def main(argv):
    os.write(1, b"a library's line\\n")
    subprocess.run(["echo", "a compiler's line"])
    sys.stdout.write("result \\udcff\\n")

run_command(main)
"""


def test_the_standard_output_holds_results_alone():
    result = subprocess.run([sys.executable, "-c", NOISY], cwd=PROJECT, capture_output=True)
    assert result.stdout == b"result \xff\n" and result.returncode == 0
    assert result.stderr == b"a library's line\na compiler's line\n"


def test_a_name_cannot_forge_a_line_of_the_log(capsys):
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(message)s"))
    handler.handle(logging.makeLogRecord({"msg": "left out %s", "args": ("a\nerror: b\x1b[2J\u202e\udcff.mp4",)}))
    assert capsys.readouterr().err == "left out a\\nerror: b\\x1b[2J\\u202e\\udcff.mp4\n"


def test_a_line_is_short_and_moves_no_cursor():
    """Whatever a file is called: it can neither forge a second line nor colour the first one."""
    assert shown("plain, é, 漢") == "plain, é, 漢"
    assert shown("a\nerror: b\x1b[31m\u202e\udcff") == r"a\nerror: b\x1b[31m\u202e\udcff"
    long = shown(f"--flag: {'x' * 10_000}; name another")
    assert len(long) < 500 and long.startswith("--flag: ") and long.endswith("; name another")
