"""From words to a video: Stable Diffusion makes the picture, Stable Video Diffusion moves it.

    python svd_tools/text_to_video.py --prompt="a fox in the snow" --SD.checkpoint=sd_xl_base_1.0.safetensors \
        --SVD.config=configs/svd.yaml --SVD.checkpoint=svd.safetensors

The flags are those of text_to_image.py and, below `--SVD`, of image_to_video.py. The picture is kept beside the video.
All pictures are made first, so that one model is in memory at a time; `--image_only` stops there.
"""

import sys
from math import sqrt
from pathlib import Path
from typing import List, Optional, Sequence

from jsonargparse import Namespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import image_to_video
from gm.backend.memory import explain_out_of_memory, memory_limit
from gm.backend.runtime import setup_runtime
from gm.config.command_parser import CommandParser
from gm.config.factory import load_model
from gm.errors import run_command, start_log
from gm.files import make_output_dir
from gm.options import SIZE_MULTIPLE
from svd_tools import text_to_image


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the pictures, then a video of each, and every path to standard output, as soon as it is there.

    Raises:
        UserError: unusable flags or input, found before any weights are read, or a failure that stops the run.
    """
    flags = build_parser().parse_args(argv)
    flags.background = "white"  # pictures have no transparency that it could show
    start_log()
    prompts = text_to_image.read_prompts(flags)
    image_to_video.check_video_flags(flags)
    text_to_image.check_files(flags)
    make_output_dir(flags.output_dir, "--output_dir")
    pictures = make_pictures(prompts, flags)
    if not flags.image_only:
        image_to_video.animate_all(pictures, flags)


def build_parser() -> CommandParser:
    """The flags of text_to_image.py and of image_to_video.py's videos."""
    parser = CommandParser(prog="text_to_video.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file of these flags; flags that follow it win")
    text_to_image.add_flags(parser)
    image_to_video.add_video_flags(parser)
    parser.add_argument("--image_only", type=bool, default=False, help="make the picture only, to look at it first")
    return parser


def make_pictures(prompts: text_to_image.Prompts, flags: Namespace) -> List[Path]:
    """Every prompt's picture, by default of the video's shape, and about as many pixels as the model was trained for.

    Raises:
        UserError: the model cannot be used, or a picture cannot be written.
    """
    with memory_limit(), explain_out_of_memory(text_to_image.REMEDIES):
        runtime = setup_runtime(flags.mode, flags.device_target)
        if flags.SD.height is None and flags.SD.width is None:
            video = load_model(flags.SVD.config, flag="--SVD.config")
            model = load_model(flags.SD.config, flag="--SD.config")
            shape = (flags.SVD.height or video.height) / (flags.SVD.width or video.width)
            area = model.height * model.width
            flags.SD.height, flags.SD.width = _rounded(sqrt(area * shape)), _rounded(sqrt(area / shape))
        return text_to_image.write_pictures(prompts, flags, runtime)


def _rounded(size: float) -> int:
    return max(1, round(size / SIZE_MULTIPLE)) * SIZE_MULTIPLE


if __name__ == "__main__":
    run_command(main)
