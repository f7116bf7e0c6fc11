"""Runs one of the project's programs on MindSpore's Ascend backend without a card, and says what was wrong with it."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from gm.errors import UserError
from svd_tools.ascend.kernels import DUMPS, ENVIRONMENT, NOT_LAUNCHED, Kernel, launched, planned_memory, read_kernels
from svd_tools.ascend.limits import violations
from svd_tools.ascend.stand_ins import build

PROJECT = Path(__file__).resolve().parents[2]
# Kernels of CANN's older kind that MindSpore has no newer one for, or puts in by itself.
ALLOWED_ACLOP = {
    "AddN": "MindSpore's own sum of a tensor's gradients",
    "TensorMove": "MindSpore's own copy of a graph's result or parameter",
    "AdamApplyOneWithDecayAssign": "MindSpore's fused AdamW; the newer one would be compiled for each learning rate",
    "Assign": "a parameter's new values, in place",
}
VIEW = re.compile(r"\w*View")  # on the host, and nothing but strides and an offset: no data leaves the card
ERROR = re.compile(r"^\[(?:ERROR|CRITICAL)\].*", re.MULTILINE)
HARMLESS = "_check_version.py"  # of CANN, which is not there
OFFLOAD = "offload"  # a folder that the backend makes where it runs, and leaves empty
LINE = 480  # characters of an error


class DryRun(NamedTuple):
    """What a program made of the backend."""

    returncode: int
    log: str
    kernels: List[Kernel]
    seconds: float

    def problems(self) -> List[str]:
        """A line for each thing that would stop it, or slow it down, on a card."""
        found = [line for line in ERROR.findall(self.log) if HARMLESS not in line]
        if self.returncode:
            found.insert(0, f"it ended with exit code {self.returncode}: {self.log.strip().splitlines()[-1]}")
        for kernel in self.kernels:
            reason = _not_for_a_card(kernel)
            if reason:
                found.append(f"{kernel.place(PROJECT)}: {kernel.name} {reason}")
        return list(dict.fromkeys(found + violations(self.kernels, PROJECT)))

    def summary(self) -> Dict[str, float]:
        """Kernels that the card is given to run, by kind, planned memory in 10⁹ bytes, and seconds in all."""
        memory = planned_memory(self.log)
        kinds = Counter(kernel.kind or "other" for kernel in launched(self.kernels))
        return {
            "kernels": sum(kinds.values()),
            **{f"{kind}_kernels": count for kind, count in sorted(kinds.items())},
            "casts": sum(kernel.name == "Cast" for kernel in self.kernels),
            "planned_gb": round(memory["without"], 1),
            "reserved_gb": round(memory["with"], 1),
            "seconds": round(self.seconds, 1),
        }


def _not_for_a_card(kernel: Kernel) -> Optional[str]:
    if kernel.name == "PyExecute":
        return "runs Python in a compiled network"
    if kernel.kind in ("", "host") and not VIEW.fullmatch(kernel.name) and kernel.name not in NOT_LAUNCHED:
        return "runs on the host, and the card waits for it"
    if kernel.kind == "aclop" and kernel.name not in ALLOWED_ACLOP:
        return "is compiled on the card's host for each shape (aclop); mint has CANN's newer kernels"
    return None


@contextmanager
def stand_ins() -> Iterator[Dict[str, str]]:
    """The environment of a process that runs dry, on stand-ins in a folder that lasts as long as the block."""
    with tempfile.TemporaryDirectory(prefix="ascend-") as folder:
        yield {**os.environ, **build(Path(folder))}


def dry_run(command: Sequence[str], environment: Dict[str, str]) -> DryRun:
    """Runs a Python program with its arguments to its end.

    Args:
        environment: of :func:`stand_ins`.
    """
    with tempfile.TemporaryDirectory(prefix="ascend-") as dumps:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command],
            env={**environment, **ENVIRONMENT, DUMPS: dumps},
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        seconds = time.perf_counter() - start
        with suppress(OSError):
            (PROJECT / OFFLOAD).rmdir()
        return DryRun(done.returncode, done.stdout, read_kernels(Path(dumps), done.stdout), seconds)


def require_clean(run: DryRun) -> None:
    """Raises a UserError that names what is wrong, as much of it as a line holds; all is in :meth:`DryRun.problems`."""
    problems = run.problems()
    if problems:
        raise UserError(f"{len(problems)} problems on Ascend: {'; '.join(problems)}"[:LINE])
