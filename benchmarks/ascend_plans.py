"""What MindSpore's Ascend backend plans for the full model: kernels of a step, memory, time to compile.

Each plan is a dry run (svd_tools/ascend_dry_run.py) of one graph, without a card, with weights of zeros; its kernels
are held against CANN's documented limits. The memory is without the kernels' workspaces; the times are this machine's.

    python benchmarks/ascend_plans.py sample:14 sample:25 decode:7 encode:1 train:14
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from benchmarks.harness import RESULT_MARK, report_child  # noqa: E402
from gm.files import atomic_file  # noqa: E402
from svd_tools.ascend.dry_run import dry_run, require_clean, stand_ins  # noqa: E402

CONFIG = PROJECT / "configs/svd.yaml"
TRAINED = {
    "train": {},
    "train_kept": {"keep": True},
    "train_all": {"trained": "all"},
    "train_lora": {"trained": "lora"},
}
PLANS = ("sample", "decode", "encode", *TRAINED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="*", help=f"NAME:FRAMES, NAME one of {', '.join(PLANS)}")
    parser.add_argument("--height", type=int, default=576)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks/results/ascend_plans.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.height // 8, args.width // 8)
        return
    results: Dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    with stand_ins() as environment:
        for plan in args.plans:
            size = [f"--height={args.height}", f"--width={args.width}"]
            run = dry_run([__file__, f"--child={plan}", *size], environment)
            own = [line for line in run.log.splitlines() if line.startswith(RESULT_MARK)]
            figures = {**run.summary(), **(json.loads(own[-1][len(RESULT_MARK) :]) if own else {})}
            results[f"{plan} {args.height}x{args.width}"] = figures
            sys.stdout.write(f"{plan}: {json.dumps(figures)}\n")
            sys.stdout.flush()
            with atomic_file(args.out) as path:
                path.write_text(json.dumps(results, indent=1) + "\n")
            require_clean(run)


def child(plan: str, height: int, width: int) -> None:
    """Compiles and runs one plan in this process, and reports how long that took."""
    from gm.backend.runtime import GRAPH_MODE, setup_runtime

    setup_runtime(GRAPH_MODE, "Ascend")
    from gm.config.factory import load_model
    from svd_tools.ascend import full_size

    name, _, frames = plan.partition(":")
    make = partial(full_size.train, **TRAINED[name]) if name in TRAINED else getattr(full_size, name)
    step = make(load_model(CONFIG), int(frames), (height, width))
    start = time.perf_counter()
    step()
    report_child({"first_step_s": round(time.perf_counter() - start, 1)})


if __name__ == "__main__":
    main()
