"""How the full-size model's cost grows, fp32: the UNet step with frames, pixels and clips, decoding with its chunk.

Each point is a process of its own of unet_step.py or stages.py: this project against diffusers, one round; at 576x1024
pixels this project alone, and its first step. A point that was measured before is kept, so that a run can be stopped;
--redo measures it again. Each question gives a JSON file and a plot.

    python benchmarks/growth.py --questions frames pixels clips chunk
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from benchmarks import harness  # noqa: E402

CONFIG = PROJECT / "configs/svd.yaml"
PEER = "diffusers"
FIGURES = {"step_s": "seconds", "peak_gb": "peak memory, GB"}
FULL_SIZE = "576x1024"  # a step takes minutes
Record = Dict[str, Dict[str, harness.Result]]  # point -> contender -> figures


class Question(NamedTuple):
    """What is varied, and what stays."""

    script: str
    ours: str  # contender
    flag: str
    points: Sequence[str]
    fixed: Sequence[str]
    title: str
    axis: str


QUESTIONS = {
    "frames": Question(
        "unet_step.py", "pynative", "frames", ("2", "4", "8", "14", "25"), ("--size=128x128",),
        "UNet step, 128x128 pixels, guidance on", "frames",
    ),
    "pixels": Question(
        "unet_step.py", "pynative", "size", ("64x64", "128x128", "256x256", FULL_SIZE), ("--frames=14",),
        "UNet step, 14 frames, guidance on", "pixels of a frame",
    ),
    "clips": Question(
        "unet_step.py", "pynative", "clips", ("1", "2", "4"), ("--size=64x64", "--frames=14"),
        "UNet step, 14 frames of 64x64 pixels, guidance on", "clips in a batch",
    ),
    "chunk": Question(
        "stages.py", "ours", "chunk", ("1", "2", "4", "7", "14"), ("--stage=decode", "--size=128x128", "--frames=14"),
        "decoding 14 frames of 128x128 pixels", "frames decoded together",
    ),
}  # fmt: skip


def measure(question: Question, path: Path, args: argparse.Namespace) -> Record:
    """Measures the points that the file lacks, and writes it after each."""
    record: Record = json.loads(path.read_text())["points"] if path.exists() else {}
    about = {"question": question.title, "varied": question.axis, "machine": harness.machine()}
    for point in [point for point in question.points if args.points is None or point in args.points]:
        known = {} if args.redo else record.get(point, {})
        steps, contenders = (0, [question.ours]) if point == FULL_SIZE else (1, [question.ours, PEER])
        flags = [*question.fixed, f"--{question.flag}={point}", f"--checkpoint={args.checkpoint}", f"--steps={steps}"]
        script = str(PROJECT / "benchmarks" / question.script)
        names = [name for name in contenders if name not in known]
        runs = harness.alternate({name: [script, f"--child={name}", *flags] for name in names}, repeats=1)
        record[point] = {**known, **{name: results[0] for name, results in runs.items()}}
        harness.write_json(path, {**about, "points": record})
    return record


def amount(point: str) -> int:
    """A point as a number: "128x128" is its product."""
    height, _, width = point.partition("x")
    return int(height) * int(width or 1)


def plot(question: Question, record: Record, path: Path) -> None:
    """Time and memory over what is varied, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(FIGURES), figsize=(9, 3.6), layout="constrained")
    points: List[str] = sorted(record, key=amount)
    for panel, (figure_name, label) in zip(panels, FIGURES.items()):
        for name, title in ((question.ours, "this project"), (PEER, "diffusers, PyTorch eager")):
            measured = [point for point in points if name in record[point]]
            values = [record[point][name][figure_name] for point in measured]
            panel.plot([amount(point) for point in measured], values, marker="o", label=title)
        panel.set(xlabel=question.axis, ylabel=label)
        wide = FULL_SIZE in points  # a hundred times as much as the smallest
        panel.set(xscale="log") if wide else panel.set_xlim(0)
        panel.set(yscale="log") if wide and figure_name == "step_s" else panel.set_ylim(0)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(question.title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--checkpoint", type=Path, default=PROJECT / "output/random_svd.safetensors")
    parser.add_argument("--results", type=Path, default=PROJECT / "benchmarks/results", help="folder")
    parser.add_argument("--points", nargs="+", help="only these of each question, such as 64x64")
    parser.add_argument("--redo", action="store_true", help="measure again what was measured before")
    args = parser.parse_args()
    from benchmarks.synthetic_weights import ensure_checkpoint

    ensure_checkpoint(args.checkpoint, CONFIG)
    args.results.mkdir(parents=True, exist_ok=True)
    for name in args.questions:
        question, path = QUESTIONS[name], args.results / f"growth_{name}.json"
        plot(question, measure(question, path, args), path.with_suffix(".png"))
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
