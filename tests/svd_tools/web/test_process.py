"""A function in a process of its own: results, reports, errors, cancelling, and its death."""

import os
import signal
import time

import pytest

from gm.backend.memory import OutOfMemory
from gm.errors import UserError
from svd_tools.web.process import Cancelled, Process


def make():
    return answer


def answer(request, report):
    """Does what the request says."""
    word, *values = request
    if word == "refuse":
        raise UserError("no")
    if word == "fail":
        raise ZeroDivisionError("what a bug raises")
    if word == "memory":
        raise OutOfMemory("out of memory; try less")
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "leave":
        os._exit(3)
    if word == "sleep":
        time.sleep(values[0])
    for value in values if word == "count" else []:
        report(value)
        time.sleep(0.05)
    return os.getpid()


@pytest.fixture(scope="module")
def process():
    process = Process(make, "the worker")
    yield process
    process.stop()


def test_one_process_answers_until_it_dies_and_then_another_does(process):
    reports = []
    pid = process.call(("count", 1, 2, 3), reports.append)
    assert reports == [1, 2, 3] and pid == process.pid != os.getpid()
    with pytest.raises(UserError, match="^no$"):
        process.call(("refuse",))
    with pytest.raises(UserError, match="^an unexpected ZeroDivisionError: what a bug raises; the terminal has"):
        process.call(("fail",))
    assert process.call(("count",)) == pid
    for word, line in {
        "die": "the worker ended unexpectedly .signal SIGKILL, as the system does when memory runs out.; the next run",
        "leave": "the worker ended unexpectedly .exit code 3.; the next run starts it anew",
        "memory": "^out of memory; try less$",
    }.items():
        with pytest.raises(UserError, match=line):
            process.call((word,))
        pid, before = process.call(("count",)), pid
        assert pid != before


def test_a_call_is_cancelled_at_its_next_report_and_the_process_stays(process):
    pid = process.call(("count",))
    seen = []

    def stop_at_two(value):
        seen.append(value)
        if value == 2:
            process.cancel()

    with pytest.raises(Cancelled):
        process.call(("count", *range(100)), stop_at_two)
    assert 2 in seen and max(seen) <= 3
    assert process.call(("count", 1, 2)) == pid  # the next one is not cancelled


def test_what_takes_too_long_is_ended(process):
    with pytest.raises(UserError, match="^the worker took more than 1 seconds and was ended$"):
        process.call(("sleep", 60), timeout=1)
    assert process.call(("sleep", 0), timeout=60)
