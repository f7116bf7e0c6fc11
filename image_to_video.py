"""Animates an image, or every image in a folder, with Stable Video Diffusion."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python imports; then gm.errors.run_command has its own

import sys
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, Iterator, Literal, NoReturn, Optional, Sequence

from jsonargparse import Namespace

from data.file_search import find_images
from data.image_reader import BACKGROUNDS, read_image
from data.mp4_writer import require_ffmpeg
from data.video_writer import WRITERS, check_video_format, new_video_path, settings_in, write_video
from gm.backend.memory import explain_out_of_memory, memory_limit
from gm.backend.runtime import RUNTIME_FLAGS, Runtime, setup_runtime
from gm.config.command_parser import CommandParser, read_group
from gm.config.factory import instantiate, model_config
from gm.config.values import flags_below
from gm.errors import UserError, run_command, start_log
from gm.files import FilePath, cleared_if_refused, in_a_file, make_output_dir, require_free_space
from gm.options import Seed
from gm.pipeline import chosen_lora
from gm.sampling.samplers import Sampler
from gm.weights.checkpoint import open_checkpoint
from gm.weights.model_kind import choose_files, portable
from modules.options import VideoOptions, choose_sampler

PROJECT = Path(__file__).resolve().parent
FLAG, DEFAULT_MODEL = "--SVD.", "svd_tiny"
REMEDIES = (
    "--SVD.decode_chunk_size=1 (decodes one frame at a time), --SVD.offload (holds the weights of one part at a time), "
    "--SVD.tile_size=512 (encodes and decodes in tiles), fewer frames (--SVD.num_frames), a smaller image "
    "(--SVD.height, --SVD.width)"
)
STEM_LENGTH = 48  # characters of the image's name in the video's: file systems allow 255 bytes in all


def build_parser() -> CommandParser:
    """The command's flags; those below `--SVD` are the pipeline's arguments."""
    parser = CommandParser(prog="image_to_video.py", description=__doc__, settings_in=settings_in)
    add = parser.add_argument
    add("--config", action="config", help="YAML file of these flags, or a video made with them; flags that follow win")
    add("--image", type=FilePath, required=True, help="the image to animate, or a folder: then every image in it")
    add("--output_dir", type=FilePath, default="./output", help="folder for the videos; made if it is not there")
    add("--seed", type=Seed, default=42, help="of the noise: the same seed gives the same frames again")
    add("--background", type=Literal[tuple(BACKGROUNDS)], default="white", help="shown where the image is transparent")
    for name, flag in RUNTIME_FLAGS.items():
        add(f"--{name}", **flag)
    add_video_flags(parser)
    return parser


def add_video_flags(parser: CommandParser) -> None:
    """The flags of the video's file, and, below `--SVD`, the pipeline's arguments."""
    add = parser.add_argument
    formats = "mp4 (H.264), gif, webp (lossless) or png (a folder of frames), with the settings that made them inside"
    add("--output_format", type=Literal[tuple(WRITERS)], default="mp4", help=formats)
    config = "YAML file that defines the model; by default the one for the checkpoint, or else configs/svd_tiny.yaml"
    add("--SVD.config", type=Optional[FilePath], default=None, help=config)
    weights = "its weights: a published svd*.safetensors, the reference toolkit's .ckpt, or a file of this project's; "
    weights += "by default the configuration's file in checkpoints/"
    add("--SVD.checkpoint", type=Optional[FilePath], default=None, help=weights)
    parser.add_options(VideoOptions, "SVD")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """See :func:`animate_all`."""
    flags = build_parser().parse_args(argv)
    start_log()
    images = find_images(flags.image)
    check_video_flags(flags)
    animate_all(images, flags)


def animate_all(images: Sequence[Path], flags: Namespace) -> None:
    """Writes one video per image and its path to standard output, as soon as it is there.

    Raises:
        UserError: unusable flags or input, found before any weights are read; a failure that stops the run; or, after
            all others are done, the images that failed.
    """
    failures: Dict[Path, UserError] = {}
    with cleared_if_refused(flags.output_dir) as begin, memory_limit(), explain_out_of_memory(REMEDIES):
        for image in images:
            with collect_errors(image, failures):
                read_image(image, BACKGROUNDS[flags.background])
        readable = [image for image in images if image not in failures]
        if readable:
            make_output_dir(flags.output_dir, "--output_dir")
            runtime = setup_runtime(flags.mode, flags.device_target)
            pipeline = build_pipeline(flags)
            for image in readable:
                with collect_errors(image, failures):
                    path = animate(pipeline, image, flags, runtime)
                    begin()
                    sys.stdout.write(f"{path}\n")
                    sys.stdout.flush()
        if failures:
            raise_failures(failures, len(images))


@contextmanager
def collect_errors(image: Path, failures: Dict[Path, UserError]) -> Iterator[None]:
    """Keeps what goes wrong with one image for the end, so that the others are done."""
    try:
        yield
    except UserError as error:
        failures[image] = error


def raise_failures(failures: Dict[Path, UserError], num_images: int) -> NoReturn:
    """One line for all images that failed."""
    reasons = [str(error) for error in failures.values()]
    if num_images == 1:
        raise next(iter(failures.values()))
    raise UserError(f"{len(failures)} of {num_images} images failed: {in_a_file(reasons)}")


def build_pipeline(flags: Namespace) -> Any:
    """The pipeline of the flags, whose files are known to be there."""
    from modules.pipeline import SVDPipeline

    return SVDPipeline(**flags.SVD.as_dict())


def check_video_flags(flags: Namespace) -> None:
    """Finds the model's two files where they are not named, and what cannot be used, before anything is imported.

    Raises:
        UserError: videos cannot be written as the flags say; a file is missing or of another model; no such sampler.
    """
    check_video_format(flags.output_format, flags.SVD.fps)
    if flags.output_format == "mp4":
        require_ffmpeg("--output_format=mp4")
    given = flags.SVD
    given.config, given.checkpoint = choose_files(given.config, given.checkpoint, DEFAULT_MODEL, FLAG, given.num_frames)
    if given.lora is not None:
        with open_checkpoint(given.checkpoint) as source:
            chosen_lora(given, {name: info.shape for name, info in source.info.items()}, FLAG).check(source.info)
    engine = model_config(given.config)["model"].get("params")
    sampler = engine.get("sampler_config") if isinstance(engine, dict) else None
    if isinstance(sampler, dict):
        sampler = instantiate(sampler, f"{FLAG}config: {given.config}: ")
        if not isinstance(sampler, Sampler):
            raise UserError(f"{FLAG}config: {given.config}: its sampler_config describes no sampler")
        with flags_below(FLAG):
            choose_sampler(sampler, read_group(VideoOptions, flags, "SVD"))


def animate(pipeline: Any, image: Path, flags: Namespace, runtime: Runtime) -> Path:
    """Image file to video file; returns the video's path, named after the image, the time and the seed.

    Raises:
        UserError: no room for the video, or a name that it cannot have, before it is made; or it cannot be written.
    """
    frame_bytes = pipeline.num_frames * pipeline.height * pipeline.width * 3
    require_free_space(flags.output_dir, frame_bytes, "the video")
    stem = f"{plain_name(image.stem)[:STEM_LENGTH]}_{datetime.now():%Y-%m-%d_%H-%M-%S}_seed{flags.seed}"
    with new_video_path(flags.output_dir, stem, flags.output_format) as path:
        frames = pipeline(read_image(image, BACKGROUNDS[flags.background]), flags.seed)
        write_video(frames, path, pipeline.fps, describe(pipeline, image, flags, runtime), flags.output_format)
    return path


def plain_name(name: str) -> str:
    """A name without what no screen shows and what is not UTF-8: `_` instead, and a space for any spaces."""
    return "".join(c if c.isprintable() else "_" for c in " ".join(name.split())) or "_"


def describe(pipeline: Any, image: Path, flags: Namespace, runtime: Runtime) -> Dict[str, Any]:
    """What made a video, as flags: `--config` takes it. The image has its name alone, since it may have moved."""
    return {
        "image": image.name,
        "background": flags.background,
        "seed": flags.seed,
        "mode": runtime.mode,
        "device_target": runtime.device,
        "output_format": flags.output_format,
        "SVD": {"config": portable(flags.SVD.config), **pipeline.settings},
    }


if __name__ == "__main__":
    run_command(main)
