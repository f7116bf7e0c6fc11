"""Runs contenders in turn, each in a process of its own, and compares their medians.

The machine may be shared and noisy: what counts is the ratio within one run. Contenders alternate (A B C A B C …), so
that a slow minute hits them all.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np

from gm.files import atomic_file

Result = Dict[str, float]
PROJECT = Path(__file__).resolve().parents[1]
PARENT_FLAGS = ("repeats", "out", "contenders", "child")
RESULT_MARK = "benchmark-result: "


def report_child(result: Mapping[str, float]) -> None:
    """Called by a contender's process at its end: sends its figures, with its peak resident memory in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sys.stdout.write(RESULT_MARK + json.dumps({**result, "peak_gb": peak}) + "\n")


def timed(call: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_steps(step: Callable[[], Any], start: float, steps: int) -> None:
    """Called by a contender's process: times a first step and `steps` more, and sends the figures.

    Args:
        start: of the loading that ends here, by `time.perf_counter`.
        steps: the median of these is the step's time; with 0 it is the first one's.
    """
    loaded = time.perf_counter() - start
    first = timed(step)
    rest = [timed(step) for _ in range(steps)] or [first]
    report_child({"load_s": loaded, "first_step_s": first, "step_s": median(rest)})


def make_parser(
    description: Optional[str], contenders: Sequence[str], checkpoint: str, out: Optional[str], steps: int
) -> argparse.ArgumentParser:
    """The flags that all comparisons share.

    Args:
        checkpoint, out: default paths in the project; with None the caller names the file for the results.
        steps: by default timed in each process, after the first one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repeats", type=int, default=3, help="rounds of separate processes")
    add("--steps", type=int, default=steps, help="timed in each process, after the first")
    add("--checkpoint", type=Path, default=PROJECT / checkpoint, help="written with random weights if it is not there")
    add("--out", type=Path, default=PROJECT / out if out else None, help="JSON file for all figures")
    add("--contenders", nargs="+", default=list(contenders), choices=contenders)
    add("--child", choices=contenders, help=argparse.SUPPRESS)
    return parser


def compare(script: str, args: argparse.Namespace) -> Dict[str, List[Result]]:
    """Runs `script` once for each contender and round, with the same flags and `--child`; see :func:`alternate`."""
    flags = [f"--{name}={value}" for name, value in vars(args).items() if name not in PARENT_FLAGS]
    return alternate({name: [script, f"--child={name}", *flags] for name in args.contenders}, args.repeats)


def alternate(commands: Mapping[str, Sequence[str]], repeats: int) -> Dict[str, List[Result]]:
    """Each contender's figures from `repeats` rounds.

    Raises:
        RuntimeError: a contender failed; its last lines are shown.
    """
    results: Dict[str, List[Result]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            results[name].append(_run(name, command))
    return results


def _run(name: str, command: Sequence[str]) -> Result:
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT_MARK)]
    if done.returncode or not lines:
        raise RuntimeError(f"{name} failed ({done.returncode}):\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    sys.stderr.write(f"{name}: {lines[-1][len(RESULT_MARK) :]}\n")
    return json.loads(lines[-1][len(RESULT_MARK) :])


def summary(results: Mapping[str, List[Result]], peer: str) -> Dict[str, Dict[str, float]]:
    """The median of every figure, and its ratio to the peer's where the peer has it too."""
    medians = {name: {key: median(r[key] for r in runs) for key in runs[0]} for name, runs in results.items()}
    for name, figures in medians.items():
        if name != peer and peer in medians:
            ratios = {f"{key}_ratio": figures[key] / medians[peer][key] for key in figures if medians[peer].get(key)}
            figures.update(ratios)
    return medians


def table(medians: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table: a row per contender."""
    columns = list(dict.fromkeys(key for figures in medians.values() for key in figures))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, figures in medians.items():
        cells = [f"{figures[key]:.3g}" if key in figures else "" for key in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(
    path: Path,
    question: Mapping[str, Any],
    results: Mapping[str, List[Result]],
    peer: str,
    flops: Optional[Mapping[str, int]] = None,
) -> None:
    """Writes all figures as JSON, and prints the table.

    Args:
        flops: the arithmetic of each contender's step: its share of what the machine could do in that time is added.
    """
    medians = summary(results, peer)
    if flops is not None:
        question = {**question, "flops": dict(flops), "matmul_flops_per_s": matmul_rate()}
        for name in medians.keys() & flops.keys():
            figures = medians[name]
            figures["of_matmul_rate"] = flops[name] / figures["step_s"] / question["matmul_flops_per_s"]
    record = {"question": dict(question), "machine": machine(), "medians": medians, "runs": results}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    sys.stdout.write(table(medians) + f"\n{path}\n")


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a file that is whole or as it was before."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def matmul_rate(size: int = 4096, repeats: int = 5) -> float:
    """Operations per second of a large fp32 matrix product, the best of some: what this machine can do."""
    a, b = (np.random.default_rng(seed).standard_normal((size, size), np.float32) for seed in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(repeats))


def machine() -> Dict[str, Any]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cores": os.cpu_count(), "memory_gib": round(memory, 1), "processor": _processor()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
