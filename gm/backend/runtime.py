"""The device, the execution mode and the threads of a process: set once, before the first operator runs."""

import logging
import os
import re
from typing import Any, Dict, Literal, NamedTuple, Optional, Set

from gm.backend.memory import lift_memory_limit
from gm.errors import UserError

GRAPH_MODE, PYNATIVE_MODE = 0, 1
DEVICE_FLAG = "--device_target"
DEVICES = ("auto", "CPU", "Ascend")

RUNTIME_FLAGS: Dict[str, Dict[str, Any]] = {  # of a command, as a parser's arguments
    "mode": {
        "type": Optional[Literal[GRAPH_MODE, PYNATIVE_MODE]],
        "help": "of MindSpore: 0 graph (compiles first), 1 PyNative; by default graph on Ascend, PyNative on CPU",
    },
    "device_target": {
        "type": Literal[DEVICES],
        "default": DEVICES[0],
        "help": "auto takes an Ascend card if there is one, else the CPU",
    },
}

OLDEST, NEWEST = (2, 7, 2), (2, 10)  # releases of MindSpore: tests/e2e/test_mindspore_releases.py

logger = logging.getLogger(__name__)
_set_up: Set[str] = set()  # devices, before the first operator


class Runtime(NamedTuple):
    """What :func:`setup_runtime` settled on."""

    device: str  # "CPU" or "Ascend"
    mode: int  # GRAPH_MODE or PYNATIVE_MODE


def setup_runtime(mode: Optional[int] = GRAPH_MODE, device_target: str = "auto", flag: str = DEVICE_FLAG) -> Runtime:
    """Chooses the device and sets MindSpore up for it.

    Args:
        mode: 0 compiles the networks (graph mode), 1 runs operator by operator (PyNative); None takes the one that
            makes a video soonest.
        device_target: `auto` (an Ascend card if MindSpore sees one, else the CPU), `CPU` or `Ascend`.
        flag: what the user named the device with.

    Raises:
        UserError: an unknown device, or a device that is not there.
    """
    if device_target not in DEVICES:
        raise UserError(f"{flag}: {device_target!r} is none of {', '.join(DEVICES)}")
    _set_environment()
    import mindspore as ms  # the environment must be set first

    check_release(ms.__version__)
    device = choose_device(device_target, _ascend_available(), flag)
    if device != "CPU":
        lift_memory_limit()
    _set_device(device, flag)
    mode = preferred_mode(device) if mode is None else mode
    ms.set_context(mode=mode)
    logger.info("MindSpore %s on %s, %s mode", ms.__version__, device, "graph" if mode == GRAPH_MODE else "PyNative")
    return Runtime(device, mode)


def check_release(version: str) -> None:
    """Refuses a MindSpore that is too old, and warns of one that is newer than all that were tried.

    Raises:
        UserError: it is too old.
    """
    release = tuple(map(int, re.findall(r"\d+", version)[:3]))
    oldest, newest = (".".join(map(str, numbers)) for numbers in (OLDEST, NEWEST))
    if release < OLDEST:
        raise UserError(f"MindSpore {version} is too old; install {oldest} to {newest}, on Ascend the one of your CANN")
    if release[:2] > NEWEST:
        logger.warning("MindSpore %s is newer than what was tried here, %s to %s", version, oldest, newest)


def preferred_mode(device: str) -> int:
    """The mode that makes a video soonest: on Ascend networks are compiled, on CPU operators run one by one."""
    return GRAPH_MODE if device == "Ascend" else PYNATIVE_MODE


def choose_device(device_target: str, ascend_available: bool, flag: str = DEVICE_FLAG) -> str:
    """The device for a `--device_target`: the one asked for, or for `auto` the fastest there is."""
    if device_target == "Ascend" and not ascend_available:
        raise UserError(
            f"{flag}=Ascend: MindSpore finds no Ascend card here; check the driver and CANN, or use {flag}=CPU"
        )
    if device_target == "auto":
        return "Ascend" if ascend_available else "CPU"
    return device_target


def _set_device(device: str, flag: str) -> None:
    """Before the first operator; later, in a process that uses this as a library, the device has to be the same."""
    import mindspore as ms

    try:
        ms.set_device(device)
        if device == "CPU":
            ms.runtime.launch_blocking()  # on few cores the asynchronous pipeline costs more than it hides
            # The other levels search a graph for what a CPU does not have: a tenth of the time to compile, for nothing.
            ms.set_context(jit_config={"jit_level": "O0"})
    except RuntimeError as error:  # an operator has run in this process already
        if ms.get_context("device_target") != device:
            raise UserError(f"{flag}={device}: this process computes on another device already") from error
        if device == "CPU" and not _set_up:
            logger.warning(
                "MindSpore computed something in this process before it was set up here, and so keeps queues between "
                "its threads that make a CPU of few cores up to five times slower; make the pipeline first"
            )
    _set_up.add(device)


def _ascend_available() -> bool:
    import mindspore as ms

    return ms.get_context("device_target") == "Ascend"  # before any setting: the best device that MindSpore found


def _set_environment() -> None:
    # oneDNN 3.10 (MindSpore 2.9 and 2.10) has no fast fp32 convolution for AVX-512 in this build; AVX2's is fast.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    # On 910* overflow shows as inf/nan, as IEEE 754 says, instead of saturating.
    os.environ.setdefault("MS_ASCEND_CHECK_OVERFLOW_MODE", "INFNAN_MODE")
    # Threads of fused kernels (gm.backend.kernel_fusion) that spin while they wait take the cores from MindSpore's own.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not addressed to users
