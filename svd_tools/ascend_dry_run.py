"""Runs a program of this project on MindSpore's Ascend backend without a card: it is compiled, its kernels are chosen
and its memory is planned, and all results are zeros. Linux and gcc are needed.

    python svd_tools/ascend_dry_run.py image_to_video.py --image=examples/mountain_path.jpg --output_dir=/tmp/zeros

It fails where the program ends with an error, runs Python or an operator on the host inside a compiled network, needs a
kernel that CANN compiles online, or goes beyond a limit that CANN documents (svd_tools/ascend/limits.py). What it does
not show: CANN's own checks, its kernels' values, their times and their workspaces.
"""

import json
import sys
from pathlib import Path
from typing import Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm.errors import UserError, run_command
from svd_tools.ascend.dry_run import dry_run, require_clean, stand_ins

DEVICE_FLAGS = {"image_to_video.py": "--device_target=Ascend", "train.py": "--environment.device_target=Ascend"}


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes a line of JSON, with kernels, planned memory (10⁹ bytes) and seconds, and a line for each problem.

    Raises:
        UserError: no program named, no compiler, or something that would not do on a card, with its place.
    """
    command = list(sys.argv[1:] if argv is None else argv)
    if not command or command[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: ascend_dry_run.py PROGRAM ARGUMENTS…\n\n{__doc__}")
        return
    if not Path(command[0]).is_file():
        raise UserError(f"{command[0]}: there is no such program; name one such as image_to_video.py, then its flags")
    flag = DEVICE_FLAGS.get(Path(command[0]).name)
    with stand_ins() as environment:
        run = dry_run([*command, *filter(None, [flag])], environment)
    sys.stdout.write("\n".join([json.dumps(run.summary()), *run.problems()]) + "\n")
    require_clean(run)


if __name__ == "__main__":
    run_command(main)
