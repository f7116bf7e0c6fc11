"""Makes pictures from words with Stable Diffusion 1.5, 2.1 or XL.

    python svd_tools/text_to_image.py --prompt="a fox in the snow" --SD.config=configs/sd_xl_base.yaml \
        --SD.checkpoint=sd_xl_base_1.0.safetensors

Each picture is a PNG with its settings inside. The next of several pictures of a prompt has the next seed.
"""

import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Dict, List, Optional, Sequence, Tuple

from jsonargparse import Namespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.video_writer import new_path, settings_in, write_picture
from gm.backend.memory import explain_out_of_memory, memory_limit
from gm.backend.runtime import RUNTIME_FLAGS, Runtime, setup_runtime
from gm.config.command_parser import CommandParser
from gm.config.values import Range
from gm.errors import UserError, run_command, start_log
from gm.files import FilePath, make_output_dir, read_text, reason, require_free_space
from gm.options import PictureOptions, Seed
from gm.weights.model_kind import choose_files, portable

DEFAULT_MODEL = "sd_xl_base"
REMEDIES = (
    "--SD.offload (holds the weights of one part at a time), --SD.tile_size=512 (decodes in tiles), a smaller picture "
    "(--SD.height, --SD.width)"
)
STEM_LENGTH = 48  # characters of the prompt that a picture's name has
MOST_BYTES, MOST_PICTURES = 1 << 20, 100_000  # of a file of prompts, and of all of them
Prompts = List[Tuple[str, int]]  # each with a seed


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the pictures and the path of each to standard output, as soon as it is there.

    Raises:
        UserError: unusable flags or input, found before any weights are read, or a failure that stops the run.
    """
    about = __doc__.partition("\n")[0]
    parser = CommandParser(prog="text_to_image.py", description=about, settings_in=settings_in)
    files = "YAML file of these flags, or a picture made with them; flags that follow win"
    parser.add_argument("--config", action="config", help=files)
    add_flags(parser)
    flags = parser.parse_args(argv)
    start_log()
    prompts = read_prompts(flags)
    check_files(flags)
    make_output_dir(flags.output_dir, "--output_dir")
    with memory_limit(), explain_out_of_memory(REMEDIES):
        write_pictures(prompts, flags, setup_runtime(flags.mode, flags.device_target))


def add_flags(parser: CommandParser) -> None:
    """The flags of pictures; those below `--SD` are the pipeline's arguments."""
    add = parser.add_argument
    add("--prompt", type=Optional[str], help="what the picture shows, in English; (word:1.2) weighs a part of it")
    add("--prompt_file", type=Optional[FilePath], help="a text file with a prompt in each line, in place of --prompt")
    negative = 'what it should not show; none at all is not the same as an empty one ("") for XL'
    add("--negative_prompt", type=Optional[str], help=negative)
    add("--num_images", type=Annotated[int, Range(1, 10_000)], default=1, help="of each prompt")
    add("--output_dir", type=FilePath, default="./output", help="folder for what is made; made if it is not there")
    add("--seed", type=Seed, default=42, help="of the noise: the same seed gives the same picture again")
    for name, flag in RUNTIME_FLAGS.items():
        add(f"--{name}", **flag)
    config = "YAML file that defines the model; by default the one for the checkpoint"
    add("--SD.config", type=Optional[FilePath], default=None, help=config)
    weights = "its weights: a published safetensors file (fp32 or fp16), or one that svd_tools/convert.py wrote"
    add("--SD.checkpoint", type=FilePath, required=True, help=weights)
    parser.add_options(PictureOptions, "SD")


def check_files(flags: Namespace) -> None:
    """Finds the model's YAML file where it is not named; raises a UserError if the two do not fit, or are missing."""
    given = flags.SD
    given.config, given.checkpoint = choose_files(given.config, given.checkpoint, DEFAULT_MODEL, "--SD.")


def read_prompts(flags: Namespace) -> Prompts:
    """Every picture's prompt and seed.

    Raises:
        UserError: no prompt, two kinds of them, or a file that cannot be read.
    """
    if (flags.prompt is None) == (flags.prompt_file is None):
        raise UserError("--prompt: give the words of the picture, or a file of prompts with --prompt_file")
    flag, lines = "--prompt", [flags.prompt]
    if flags.prompt_file is not None:
        flag = f"--prompt_file: {flags.prompt_file}"
        try:
            lines = read_text(flags.prompt_file, MOST_BYTES).splitlines()
        except OSError as error:
            raise UserError(f"{flag} cannot be read: {reason(error)}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{flag}: there is no prompt in it; describe the picture in words")
    if len(prompts) * flags.num_images > MOST_PICTURES:
        count = f"{len(prompts)} prompts with {flags.num_images} pictures each"
        raise UserError(f"--num_images: {count} are more than {MOST_PICTURES} pictures; name fewer")
    return [(prompt, flags.seed + index) for prompt in prompts for index in range(flags.num_images)]


def write_pictures(prompts: Prompts, flags: Namespace, runtime: Runtime) -> List[Path]:
    """Loads the model, writes one picture after the other, and lets go of the model; gives the pictures' paths.

    Raises:
        UserError: the model cannot be used, no room for a picture, or it cannot be written.
    """
    from gm.text_to_image import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(**flags.SD.as_dict())
    texts = dict.fromkeys(prompt for prompt, _ in prompts)
    encoded, pictures = {text: pipeline.encode(text, flags.negative_prompt) for text in texts}, []
    for prompt, seed in prompts:
        require_free_space(flags.output_dir, pipeline.height * pipeline.width * 3, "the picture")
        picture = pipeline(encoded[prompt], seed)
        words = re.sub(r"\W+", "_", prompt)[:STEM_LENGTH].strip("_") or "picture"
        stem = f"{words}_{datetime.now():%Y-%m-%d_%H-%M-%S}_seed{seed}"
        with new_path(flags.output_dir, stem, ".png") as path:
            write_picture(picture, path, describe(pipeline, prompt, seed, flags, runtime))
        sys.stdout.write(f"{path}\n")
        sys.stdout.flush()
        pictures.append(path)
    pipeline.engine.release()
    return pictures


def describe(pipeline: Any, prompt: str, seed: int, flags: Namespace, runtime: Runtime) -> Dict[str, Any]:
    """What made a picture: every option, resolved, and the checkpoint's hash."""
    return {
        "prompt": prompt,
        "negative_prompt": flags.negative_prompt,
        "seed": seed,
        "mode": runtime.mode,
        "device_target": runtime.device,
        "SD": {"config": portable(flags.SD.config), **pipeline.settings},
    }


if __name__ == "__main__":
    run_command(main)
