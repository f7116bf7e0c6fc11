"""What every test gets: a quiet MindSpore on the CPU in PyNative mode, two threads, nothing written into the tree."""

import os
import shutil
import sys
import tempfile

import pytest

THREADS = 2  # what continuous integration has; results and timings should not depend on a bigger machine
WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # gw0, gw1, …: side by side with others, on one core each
COMPILER_FILES = "MS_OM_PATH"  # where MindSpore puts rank_0/om/analyze_fail.ir when a graph does not compile
# Set before MindSpore is imported, here or in a child. Nothing is compiled into, or read from, the user's cache.
ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX2", "GLOG_v": "3", "MS_COMPILER_CACHE_ENABLE": "0"}


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too: full-size weights, many processes")


def pytest_configure(config):
    if WORKER:
        take_one_core(int(WORKER[2:]))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if COMPILER_FILES not in os.environ:
        os.environ[COMPILER_FILES] = tempfile.mkdtemp(prefix="mindspore-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(COMPILER_FILES), ignore_errors=True))


def take_one_core(number):
    """For this process and its children; threads that wait for each other by spinning would hold up the other core."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")})


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What was captured as text that can be sent from a worker: files' names need not be UTF-8."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def runtime():
    """Sets up the frameworks that the collected tests have imported, before the first operator runs."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1 if WORKER else THREADS)
    if "mindspore" not in sys.modules:
        return None
    from gm.backend.runtime import PYNATIVE_MODE, setup_runtime

    # An error here: some test's module runs an operator while it is imported; MindSpore's queues then stay on, and all
    # tests take up to five times as long.
    sys.modules["mindspore"].set_device("CPU")
    return setup_runtime(PYNATIVE_MODE, "CPU")


@pytest.fixture
def several_torch_threads():
    """PyTorch on one thread scales pictures by another path, which rounds otherwise."""
    torch = sys.modules["torch"]
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def pynative(runtime):
    """Puts the mode back after a test that changed it."""
    yield
    if runtime is not None:
        import mindspore as ms

        if ms.get_context("mode") != runtime.mode:
            ms.set_context(mode=runtime.mode)
