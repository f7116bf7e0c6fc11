"""Measures svd_tiny as svd_tools/evaluate.py does, with the same flags, and checks whether it does what it should.

    python svd_tiny/evaluate.py --images photos/eval --output_dir evaluation
"""

import sys
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm.errors import run_command, start_log
from svd_tools.evaluate import build_parser, evaluate, figures, write_report

MIN_RECONSTRUCTION_PSNR = 24.0  # dB
MIN_FIRST_FRAME_PSNR = 20.0  # dB
MAX_COLOUR_DRIFT = 5.0  # levels of 255
MIN_FLOW_RATIO = 3.0  # highest to lowest motion bucket
MAX_FLOW_FACTOR = 2.0  # between generated and training clips of one bucket


class Check(NamedTuple):
    """What is wanted of a figure, and whether it is met."""

    wanted: str
    met: bool


def check(summary: Dict[str, Any]) -> Dict[str, Check]:
    """Compares a summary of :func:`svd_tools.evaluate.summarise` with what is wanted; the keys are the figures'."""
    flow = list(summary["flow"].values())
    temporal, image = summary["flicker_temporal_decoder"], summary["flicker_image_decoder"]
    checks = {
        "reconstruction": _at_least(summary["reconstruction_psnr"], MIN_RECONSTRUCTION_PSNR, "dB"),
        "first_frame": _at_least(summary["first_frame_psnr"], MIN_FIRST_FRAME_PSNR, "dB"),
        "colour_drift": Check(f"below {MAX_COLOUR_DRIFT:g}/255", summary["colour_drift"] < MAX_COLOUR_DRIFT),
        "flow": Check("rises strictly", all(later > earlier for earlier, later in zip(flow, flow[1:]))),
        "flow_ratio": _at_least(flow[-1] / max(flow[0], 1e-9), MIN_FLOW_RATIO, "times"),
        "flicker": Check("less than the image decoder", temporal < image),
    }
    for bucket, trained in summary["training_flow"].items():
        low, high = sorted((summary["flow"][bucket], trained))
        met = high <= MAX_FLOW_FACTOR * max(low, 1e-9)
        checks[f"flow_{bucket}"] = Check(f"within a factor of {MAX_FLOW_FACTOR:g}", met)
    return checks


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the command; see the module's docstring."""
    start_log()
    args = build_parser().parse_args(argv)
    report = evaluate(args)
    checks = check(report["summary"])
    rows = [
        (figure, value, checks[key].wanted, "yes" if checks[key].met else "NO")
        for key, (figure, value) in figures(report["summary"]).items()
    ]
    report["checks"] = [dict(zip(("figure", "value", "wanted"), row), met=row[-1] == "yes") for row in rows]
    write_report(args, report, [("figure", "value", "wanted", "met"), *rows])


def _at_least(value: float, least: float, unit: str) -> Check:
    return Check(f"at least {least:g} {unit}", value >= least)


if __name__ == "__main__":
    run_command(main)
