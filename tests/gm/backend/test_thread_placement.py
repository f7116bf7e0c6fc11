import os
import threading

import pytest

from gm.backend import thread_placement
from gm.backend.kernels import threads
from gm.backend.operators import inference

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)


@pytest.fixture(autouse=True)
def any_machine(monkeypatch):
    monkeypatch.setattr(thread_placement, "MOST_CORES", os.cpu_count())


def cores_of_threads():
    return {int(thread): os.sched_getaffinity(int(thread)) for thread in os.listdir(thread_placement.THREADS)}


def test_helpers_leave_the_main_thread_its_core():
    before = cores_of_threads()
    with inference(alone=True):
        inside = cores_of_threads()
        (main,) = inside[os.getpid()]
        names = thread_placement._names()
        helpers = [cores for thread, cores in inside.items() if not names[thread].startswith("Actor")]
        helpers.remove({main})
        assert helpers
        assert all(len(cores) == 1 and main not in cores for cores in helpers)
    assert os.sched_getaffinity(0) == before[os.getpid()]
    after = cores_of_threads()
    assert all(after[thread] == cores for thread, cores in before.items() if thread in after)


def test_the_threads_of_loops_are_there_before_cores_are_given():
    with inference(alone=True):
        number = threads._pool().submit(threading.get_native_id).result()
        assert os.sched_getaffinity(number).isdisjoint(os.sched_getaffinity(0))


def test_the_thread_that_calls_has_a_core_whichever_it_is():
    seen = []

    def call():
        with inference(alone=True):
            inside = cores_of_threads()
            own = inside.pop(threading.get_native_id())
            seen.append(own)
            number = threads._pool().submit(threading.get_native_id).result()
            seen.append(inside[number])

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    own, helper = seen
    assert len(own) == 1 and helper.isdisjoint(own)


def test_an_error_gives_the_cores_back_and_so_does_a_thread_that_was_started_inside():
    before, release = os.sched_getaffinity(0), threading.Event()
    started = threading.Thread(target=release.wait)
    with pytest.raises(ZeroDivisionError), inference(alone=True):
        started.start()
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(started.native_id) == before
    release.set()
    started.join()


def test_nothing_is_placed_on_a_larger_machine(monkeypatch):
    monkeypatch.setattr(thread_placement, "MOST_CORES", 1)
    before = cores_of_threads()
    with inference(alone=True):
        assert cores_of_threads() == before
