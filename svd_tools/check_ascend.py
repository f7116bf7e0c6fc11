"""Checks this toolkit on an Ascend card in about ten minutes, and writes a report that can be sent and compared.

    python svd_tools/check_ascend.py --device_target=CPU --out=cpu.json
    python svd_tools/check_ascend.py --out=ascend.json --against=cpu.json

The report has the versions; every layer in fp32 and fp16, compared with its formula in double precision; svd_tiny's
networks, compared with those of another report; the fused attention against the plain one; times and memory of a UNet
step, a decode and a training step at full size, with weights of zeros; a training step whose gradients overflow; and,
where there are two cards, a sum over them. On a CPU all of it runs at a small size.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from gm.backend.runtime import DEVICES, GRAPH_MODE, setup_runtime
from gm.config.command_parser import CommandParser
from gm.errors import UserError, run_command
from gm.files import FilePath, atomic_file, parse_json, read_text

PROJECT = Path(__file__).resolve().parents[1]
TOLERANCES = {"fp32": 3e-3, "fp16": 2e-2}  # of the largest number: HF32 has a mantissa of 11 bits, fp16 of 10
KEPT = 64  # numbers of each result, evenly spread
FULL = {"config": "svd", "frames": 14, "decoded": 7, "size": (72, 128)}
SMALL = {"config": "svd_tiny", "frames": 2, "decoded": 2, "size": (8, 8)}
SUM = """
import mindspore as ms, numpy as np
from mindspore import Tensor, communication, ops
ms.set_device({device!r})
communication.init()
print("sum", ops.AllReduce()(Tensor(np.ones(4, np.float32))).asnumpy().tolist())
"""

Report = Dict[str, Any]
Results = Dict[str, Dict[str, Any]]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the report, and a line to standard output for each thing that was checked.

    Raises:
        UserError: a file cannot be used, or a result is not what it should be; the report is written all the same.
    """
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    peer = read_report(args.against) if args.against else None
    runtime = setup_runtime(GRAPH_MODE, args.device_target)
    on_card = runtime.device == "Ascend"
    size = FULL if on_card else SMALL
    report: Report = {"versions": versions(runtime.device)}
    failures: List[str] = []
    checks: List[Tuple[str, Callable[[], Any]]] = [
        ("results", results),
        ("attention", lambda: attention(size["size"])),
        ("steps", lambda: dict(steps(**size))),
        ("overflow", overflow),
        ("two_cards", lambda: two_cards(runtime.device)),
    ]
    for name, check in checks:
        start = time.perf_counter()
        try:
            report[name] = check()
        except Exception as error:  # the report is for whoever can mend it: it tells, and goes on
            report[name] = f"{type(error).__name__}: {error}"
            failures.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        sys.stdout.write(f"{name}: {time.perf_counter() - start:.0f} s\n")
        sys.stdout.flush()
    failures += differences(report["results"], peer)
    report["failures"] = failures
    with atomic_file(args.out) as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{args.out}\n")
    if failures:
        raise UserError(f"{len(failures)} of the checks failed ({args.out} has all): {'; '.join(failures[:3])}"[:480])


def read_report(path: str) -> Report:
    """A report that this program wrote."""
    try:
        report = parse_json(read_text(path))
        report["results"]["fp32"].items()
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"--against: {path} is no report of this program ({type(error).__name__}: {error})") from error
    return report


def versions(device: str) -> Dict[str, str]:
    """Of what computes."""
    import mindspore as ms

    found = {"mindspore": ms.__version__, "python": platform.python_version(), "machine": platform.platform()}
    if device == "Ascend":
        for path in sorted(Path("/usr/local/Ascend").glob("*/version.info")):
            found[str(path)] = path.read_text(errors="replace").strip()
        found["card"] = _output("npu-smi", "info")[:2000]
    return {"device": device, **found}


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def results() -> Results:
    """Some numbers of every layer's and network's result, and the largest, by precision; of layers the error too."""
    from svd_tools.ascend.cases import layers, networks

    found: Results = {"fp32": {}, "fp16": {}}
    for precision, values in found.items():
        for name, result, expected in layers(precision):
            error = np.abs(result - expected).max() / np.abs(expected).max()
            values[name] = {**digest(result), "error": float(f"{error:.2g}")}
        values.update({name: digest(result) for name, result in networks(precision)})
    return found


def digest(result: np.ndarray) -> Dict[str, Any]:
    """The largest number, and some, evenly spread."""
    flat = result.astype(np.float64).reshape(-1)
    chosen = np.linspace(0, flat.size - 1, min(KEPT, flat.size)).astype(int)
    return {"largest": float(np.abs(flat).max()), "some": [float(f"{x:.7g}") for x in flat[chosen]]}


def differences(found: Any, peer: Optional[Report]) -> List[str]:
    """What is not as its formula has it, or as the peer's fp32 result where there is a peer, within the tolerance.

    The errors go into the results.
    """
    wrong = []
    for precision, values in found.items() if isinstance(found, dict) else ():
        for name, value in values.items():
            theirs = peer["results"]["fp32"].get(name) if peer else None
            if theirs is not None:
                error = np.abs(np.subtract(value["some"], theirs["some"])).max() / theirs["largest"]
                value["error"] = max(value.get("error", 0.0), float(f"{error:.2g}"), key=_size)
            if not value.get("error", 0.0) <= TOLERANCES[precision]:
                wrong.append(f"{name} in {precision} differs by {value['error']:.1e} of the largest number")
    return wrong


def _size(error: float) -> float:
    return float("inf") if np.isnan(error) else error


def attention(size: Tuple[int, int]) -> Dict[str, float]:
    """The fused attention against the plain one in half precision: the largest difference, and both times in s."""
    import mindspore as ms
    from mindspore import Tensor

    from gm.backend import operators
    from gm.backend.operators import Operators, inference

    found: Dict[str, float] = {}
    rng = np.random.default_rng(0)
    shapes = {"spatial": (2, 5, size[0] * size[1], 64), "temporal": (2 * size[0] * size[1], 5, 14, 64)}
    for name, shape in shapes.items():
        q, k, v = (Tensor(rng.standard_normal(shape, np.float32).astype(np.float16)) for _ in range(3))
        with inference(compiled=False):
            outs = []
            for title, door in (("fused", operators.current), ("plain", Operators())):
                door.attention(q, k, v).asnumpy()
                start = time.perf_counter()
                outs.append(door.attention(q, k, v).astype(ms.float32).asnumpy())
                found[f"{name}_{title}_s"] = time.perf_counter() - start
        found[f"{name}_difference"] = float(np.abs(outs[0] - outs[1]).max())
        if not found[f"{name}_difference"] <= TOLERANCES["fp16"]:
            raise RuntimeError(f"the fused {name} attention differs; SVD_PLAIN_ATTENTION=1 does without it: {found}")
    return found


def steps(config: str, frames: int, decoded: int, size: Tuple[int, int]) -> Iterator[Tuple[str, Dict[str, float]]]:
    """Seconds of the first (compiled then) and of the second call of each, and the peak of memory so far."""
    from gm.backend.memory import peak_memory_gb
    from gm.config.factory import load_model
    from svd_tools.ascend import full_size

    makers = {
        "sample": lambda engine: full_size.sample(engine, frames, size),
        "decode": lambda engine: full_size.decode(engine, decoded, size),
        "train": lambda engine: full_size.train(engine, frames, size),
    }
    for name, make in makers.items():
        step = make(load_model(PROJECT / "configs" / f"{config}.yaml"))
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            step()
            seconds.append(round(time.perf_counter() - start, 3))
        yield name, {"first_s": seconds[0], "second_s": seconds[1], "peak_gb": round(peak_memory_gb(), 2)}


def overflow() -> Dict[str, float]:
    """A step of svd_tiny at a loss scale at which fp16 overflows, and further ones until it does not."""
    from gm.config.factory import load_model
    from svd_tools.ascend.cases import training_step

    step, batch, parameters = training_step(load_model(PROJECT / "configs/svd_tiny.yaml"))
    before = [parameter.asnumpy().copy() for parameter in parameters]
    scale = step.loss_scale.value
    first = step([batch], 1e-4)
    if first.updated or not first.overflow or step.loss_scale.value >= scale:
        raise RuntimeError(f"an overflow was not noticed: {first}")
    if not all(np.array_equal(old, new.asnumpy()) for old, new in zip(before, parameters)):
        raise RuntimeError("an overflow changed the weights")
    skipped = 1
    while not step([batch], 1e-4).updated:
        skipped += 1
        if step.loss_scale.value <= 1:
            raise RuntimeError("no loss scale has finite gradients")
    return {"skipped": skipped, "loss_scale": step.loss_scale.value}


def two_cards(device: str) -> Any:
    """The sum over two processes, each with a card of its own."""
    import mindspore as ms

    if device == "Ascend" and ms.device_context.ascend.device_count() < 2:
        return "one card"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "ranks.py"
        script.write_text(SUM.format(device=device))
        msrun = str(Path(sys.executable).with_name("msrun"))
        flags = ["--worker_num=2", "--local_worker_num=2", "--join=True", f"--log_dir={folder}", "--master_port=8118"]
        subprocess.run([msrun, *flags, str(script)], capture_output=True, timeout=300, cwd=folder)
        sums = [line for path in Path(folder).glob("worker_*.log") for line in path.read_text().splitlines()
                if line.startswith("sum ")]  # fmt: skip
    if sums != ["sum [2.0, 2.0, 2.0, 2.0]"] * 2:
        raise RuntimeError(f"the sum over two processes is {sums}")
    return sums[0]


def _parser() -> CommandParser:
    parser = CommandParser(prog="check_ascend.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--out", type=FilePath, default="ascend_report.json", help="the report to write")
    add("--against", type=Optional[FilePath], default=None, help="another report to compare with, such as a CPU's")
    add("--device_target", default=DEVICES[0], choices=DEVICES, help="auto takes an Ascend card if there is one")
    return parser


if __name__ == "__main__":
    run_command(main)
