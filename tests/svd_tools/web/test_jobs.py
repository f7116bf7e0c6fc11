"""The queue: order, places, cancelling, visitors who leave, and that nothing stops it."""

import os
import threading
import time

import pytest

from gm.errors import UserError
from svd_tools.web import jobs
from svd_tools.web.jobs import CANCELLED, DONE, FAILED, RUNNING, JobQueue
from svd_tools.web.making import Progress
from svd_tools.web.process import Cancelled


class Work:
    """Stands in for the model: each call waits for its leave, and then does what its request says."""

    def __init__(self):
        self.leave, self.done = threading.Semaphore(0), []

    def __call__(self, request, on_report):
        on_report("a preview")
        while not self.leave.acquire(timeout=0.01):
            if not on_report(Progress("sampling", 1, 2)):
                raise Cancelled
        self.done.append(request)
        if isinstance(request, Exception):
            raise request
        return {"seed": request}


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def queue(work, tmp_path):
    return JobQueue(work, tmp_path)


def submit(queue, request):
    return queue.submit(lambda folder: request)


def wait(job, *states):
    deadline = time.monotonic() + 10
    while job.state not in states:
        assert time.monotonic() < deadline, job.state
        time.sleep(0.005)


def test_each_has_its_turn_and_sees_its_place(queue, work):
    ours = [submit(queue, seed) for seed in range(4)]
    assert len({job.key for job in ours}) == 4 and all(queue.find(job.key) is job for job in ours)
    wait(ours[0], RUNNING)
    assert [job.place for job in ours[1:]] == [1, 2, 3]
    versions = [job.version for job in ours]
    work.leave.release()
    wait(ours[0], DONE)
    wait(ours[1], RUNNING)
    assert [job.place for job in ours[2:]] == [1, 2] and all(job.version > old for job, old in zip(ours, versions))
    queue.cancel(ours[2])
    assert ours[2].state == CANCELLED and ours[3].place == 1 and not ours[2].folder.exists()
    for _ in range(2):
        work.leave.release()
    wait(ours[3], DONE)
    assert work.done == [0, 1, 3] and [job.settings for job in ours] == [{"seed": 0}, {"seed": 1}, {}, {"seed": 3}]


def test_a_running_one_is_cancelled_and_the_next_runs(queue, work):
    first, second = submit(queue, 1), submit(queue, 2)
    wait(first, RUNNING)
    queue.cancel(first)
    wait(first, CANCELLED)
    work.leave.release()
    wait(second, DONE)
    assert work.done == [2] and first.preview == ""


def test_so_is_one_that_nobody_watches(queue, work, monkeypatch):
    left, waiting, watched = (submit(queue, seed) for seed in range(3))
    wait(left, RUNNING)
    monkeypatch.setattr(jobs, "ABANDONED_SECONDS", 0.3)
    while not left.finished:
        watched.look()
        time.sleep(0.005)
    watched.look()
    work.leave.release()
    wait(watched, DONE, CANCELLED)
    assert [job.state for job in (left, waiting, watched)] == [CANCELLED, CANCELLED, DONE]


def test_failures_are_told_and_stop_nothing(queue, work):
    refused, broken, sound = (submit(queue, request) for request in (UserError("too large"), KeyError("bug"), 3))
    for _ in range(3):
        work.leave.release()
    wait(sound, DONE)
    assert (refused.state, refused.error) == (FAILED, "too large")
    assert (broken.state, broken.error) == (FAILED, "an unexpected KeyError; the terminal has the details")


def test_there_is_an_end_to_what_waits_and_what_is_kept(queue, work, monkeypatch):
    monkeypatch.setattr(jobs, "MOST_WAITING", 2)
    ours = [submit(queue, 0)]
    wait(ours[0], RUNNING)
    ours += [submit(queue, seed) for seed in (1, 2)]
    with pytest.raises(UserError, match="^2 videos are waiting already"):
        submit(queue, 3)
    for _ in ours:
        work.leave.release()
    wait(ours[-1], DONE)
    assert all(job.folder.exists() for job in ours)
    monkeypatch.setattr(jobs, "MOST_KEPT", 1)
    submit(queue, 4)
    assert [queue.find(job.key) for job in ours] == [None, None, ours[2]]
    assert [job.folder.exists() for job in ours] == [False, False, True]
    monkeypatch.setattr(jobs, "KEPT_SECONDS", 0)
    submit(queue, 5)
    assert queue.find(ours[2].key) is None


def test_uploads_are_removed_when_they_are_old(work, tmp_path, monkeypatch):
    (tmp_path / "uploads" / "a").mkdir(parents=True)
    for name in ("old.jpg", "new.jpg"):
        (tmp_path / "uploads" / "a" / name).touch()
    os.utime(tmp_path / "uploads" / "a" / "old.jpg", (0, 0))
    JobQueue(work, tmp_path, [tmp_path / "uploads"]).submit(lambda folder: 1)
    assert [path.name for path in (tmp_path / "uploads" / "a").iterdir()] == ["new.jpg"]
