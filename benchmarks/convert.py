"""Time and memory of full-size conversions, each beside `cp` of its source on the same disk just before it.

    python benchmarks/convert.py --work_dir=/tmp/convert --report=benchmarks/convert.md

A synthetic checkpoint of all 2446 names and shapes (9.56 GB, fp32) is written to `--work_dir`, converted there in
every direction, compared bit for bit, and removed. The folder needs some 30 GB of room. Copy and conversion both count
the time until the data are on the disk.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from math import prod
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from jsonargparse import ArgumentParser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm.errors import run_command
from gm.weights.checkpoint import open_checkpoint
from gm.weights.names import expected_parameters
from gm.weights.safetensors_file import write_safetensors
from gm.weights.tensor_source import Raw, TensorInfo

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "svd.yaml"
POOL = 1 << 26  # random values drawn once, and used again at other offsets

HEADING = f"""# Conversion of the full-size checkpoint

2446 tensors, 9.56 GB in fp32, {os.cpu_count()} cores. Every round trip was compared bit for bit. Times are of the whole
command, the start of Python and the SHA-256 of source and output included, until the data are on the disk; `cp` is a
copy of the same source made just before, likewise. CPU is the processor time of all threads (a copy takes 6 to 8 s of
it): at a load above the number of cores the conversion waits for its share. Peak memory is the resident set with the
pages of mapped files. `python benchmarks/convert.py --work_dir=DIR` measures again.

| conversion | s | cp, s | ratio | CPU, s | peak, GB | load |
|---|---|---|---|---|---|---|
"""


class Measurement(NamedTuple):
    """One conversion.

    Attributes:
        what: from which layout to which.
        seconds: that it took.
        copy_seconds: that `cp` of its source took just before.
        cpu_seconds: of processor time, all threads and the system's share.
        peak_gb: peak resident memory, the pages of mapped files included.
        load: the machine's load average while it ran.
    """

    what: str
    seconds: float
    copy_seconds: float
    cpu_seconds: float
    peak_gb: float
    load: float


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measures, checks and writes the report."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work_dir", required=True, help="a new folder for the files, on the disk to be measured")
    parser.add_argument("--report", default=None, type=Optional[str], help="Markdown file; by default standard output")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    work = Path(args.work_dir)
    work.mkdir(parents=True)
    try:
        report = report_text(measure(work))
    finally:
        shutil.rmtree(work)
    if args.report:
        Path(args.report).write_text(report)
    else:
        sys.stdout.write(report)


def save_synthetic(path: Path) -> None:
    """Writes a single file of random values with the names and shapes of `configs/svd.yaml`."""
    info = {name: TensorInfo("F32", shape) for name, shape in expected_parameters(CONFIG).items()}
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32)
    offsets = {name: 7919 * index % (POOL // 4) for index, name in enumerate(info)}

    def read(name: str) -> Raw:
        count = prod(info[name].shape)
        return memoryview(pool[offsets[name] : offsets[name] + count]).cast("B")

    write_safetensors(path, info, read, {"format": "pt"})


def measure(work: Path) -> List[Measurement]:
    """All conversions, one after the other; the disk holds three copies at most."""
    source = work / "svd.safetensors"
    save_synthetic(source)
    done = [_convert("safetensors → safetensors", source, work / "a", "--to=safetensors")]
    _compare(source, work / "a" / "svd.safetensors")
    done.append(_convert("safetensors → .ckpt", source, work / "a", "--to=ckpt"))
    (work / "a" / "svd.safetensors").unlink()
    done.append(_convert(".ckpt → safetensors", work / "a" / "svd.ckpt", work / "a", "--to=safetensors"))
    _compare(source, work / "a" / "svd.safetensors")
    shutil.rmtree(work / "a")
    _pickle(source, work / "svd.pt")
    done.append(_convert("PyTorch pickle → safetensors", work / "svd.pt", work / "a", "--to=safetensors"))
    _compare(source, work / "a" / "svd.safetensors")
    shutil.rmtree(work / "a")
    (work / "svd.pt").unlink()
    done.append(_convert("safetensors → diffusers", source, work / "a", "--to=diffusers"))
    done.append(_convert("diffusers → safetensors", work / "a" / "svd", work / "a", "--to=safetensors"))
    _compare(source, work / "a" / "svd.safetensors")
    shutil.rmtree(work / "a")
    done.append(_convert("safetensors → safetensors, fp16", source, work / "a", "--to=safetensors", "--dtype=fp16"))
    done.append(_convert("safetensors → safetensors, bf16", source, work / "a", "--to=safetensors", "--dtype=bf16"))
    return done


def report_text(measurements: Sequence[Measurement]) -> str:
    """The table, in Markdown."""
    rows = [
        f"| {m.what} | {m.seconds:.1f} | {m.copy_seconds:.1f} | {m.seconds / m.copy_seconds:.2f} "
        f"| {m.cpu_seconds:.1f} | {m.peak_gb:.2f} | {m.load:.1f} |"
        for m in measurements
    ]
    return HEADING + "\n".join(rows) + "\n"


def _convert(what: str, source: Path, out_dir: Path, *flags: str) -> Measurement:
    copy = out_dir.parent / "copy"
    copy_seconds, _ = _timed(["cp", "-r", str(source), str(copy)])
    shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    command = [sys.executable, str(ROOT / "svd_tools" / "convert.py"), f"--pt_weights_file={source}"]
    seconds, usage = _timed([*command, f"--config={CONFIG}", f"--out_dir={out_dir}", *flags])
    cpu_seconds, peak_gb = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9
    return Measurement(what, seconds, copy_seconds, cpu_seconds, peak_gb, os.getloadavg()[0])


def _pickle(source: Path, path: Path) -> None:
    """The same tensors as `torch.save` writes them, in a process of its own."""
    imports = "import sys, torch; from safetensors.torch import load_file; "
    code = imports + "torch.save({'state_dict': load_file(sys.argv[1])}, sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(source), str(path)], check=True)


def _timed(command: Sequence[str]) -> Tuple[float, resource.struct_rusage]:
    """Seconds that a command takes until its data are on the disk, and what it used."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    if status:
        raise RuntimeError(f"{command} ended with status {status}")
    return time.perf_counter() - start, usage


def _compare(one: Path, other: Path) -> None:
    """Raises unless two checkpoints hold the same tensors, bit for bit."""
    with open_checkpoint(one) as a, open_checkpoint(other) as b:
        if a.info != b.info:
            raise RuntimeError(f"{one} and {other} differ in names, shapes or types")
        for name in a.info:
            if not np.array_equal(np.frombuffer(a.read_raw(name), np.uint8), np.frombuffer(b.read_raw(name), np.uint8)):
                raise RuntimeError(f"{one} and {other} differ in {name}")
            a.release(name)
            b.release(name)


if __name__ == "__main__":
    run_command(main)
