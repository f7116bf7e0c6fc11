"""Finetunes Stable Video Diffusion on the videos of a CSV file."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python imports; then gm.errors.run_command has its own

import json
import logging
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Literal, Optional, Sequence

from jsonargparse import Namespace
from tqdm import tqdm

from data.video_dataset import VideoDataset
from gm.backend.memory import explain_out_of_memory, memory_limit
from gm.backend.runtime import setup_runtime
from gm.config.command_parser import CommandParser, read_group
from gm.errors import LineFormatter, UserError, run_command, start_log
from gm.files import FilePath, cleared_if_refused, make_output_dir, open_private, reason
from modules.training import options

REMEDIES = (
    "--train.recompute=True (keeps less for the backward pass), --train.latent_cache.folder=DIR (holds no encoder), "
    "--train.lora.rank=16 (trains fewer parameters), --train.ema_decay=0, fewer frames "
    "(--train.dataset.init_args.frames), smaller ones (--train.dataset.init_args.height, …width)"
)
DATASET = "data.video_dataset.VideoDataset"
PACKAGES = ("gm", "data", "modules")
LOG_NAME, LOG_FORMAT = "train.log", "%(asctime)s %(message)s"
FIRST_FILES = (LOG_NAME, ".lock", "initial.safetensors")  # what there is before the first step

logger = logging.getLogger(__name__)


def build_parser() -> CommandParser:
    """The command's flags: groups of options, explained where they are defined, and the data set's arguments."""
    parser = CommandParser(prog="train.py", description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file of these flags; those that follow it win")
    parser.add_argument("--svd_config", type=FilePath, default="configs/svd.yaml", help="YAML file of the model")
    for prefix, group in options.groups().values():
        parser.add_options(group, prefix)
    parser.add_argument("--train.dataset.class_path", type=Literal[DATASET], default=DATASET, help="the only one")
    parser.add_class_arguments(VideoDataset, "train.dataset.init_args", skip={"seed", "holdout", "held_out"})
    return parser


def read_options(flags: Namespace) -> options.TrainingOptions:
    """The flags as objects, checked as far as they can be by themselves.

    Raises:
        UserError: flags that do not go together.
    """
    chosen = {name: read_group(group, flags, prefix) for name, (prefix, group) in options.groups().items()}
    return options.TrainingOptions(**chosen, dataset=flags.train.dataset.init_args.as_dict())


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Trains; the run's folder gets checkpoints, log, curves and validation videos, and its path is printed.

    SIGTERM and Ctrl-C save a checkpoint after the present step and end the program with exit code 0.

    Raises:
        UserError: options, data or weights that cannot be used; or a run that cannot go on.
    """
    flags = build_parser().parse_args(argv)
    chosen = read_options(flags)
    start_log(line=LOG_FORMAT, handler=BesideBars())
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.DEBUG if chosen.environment.debug else logging.INFO)
    with cleared_if_refused(chosen.run.output_dir, FIRST_FILES) as begin:
        folder = make_output_dir(chosen.run.output_dir, "--train.output_dir")
        with memory_limit(), explain_out_of_memory(REMEDIES):
            train(flags, chosen, folder, begin)


def train(flags: Namespace, chosen: options.TrainingOptions, folder: Path, begin: Callable[[], None]) -> None:
    """Sets up the device and the processes, calls `begin`, and trains."""
    environment = chosen.environment
    runtime = setup_runtime(environment.mode, environment.device_target, "--environment.device_target")
    from gm.training.distributed import connect  # these import MindSpore, which the environment must be set for
    from modules.training.run import training_run

    communicator = connect(environment.distributed, environment.shard_optimizer, runtime.device)
    svd_config, first = Path(flags.svd_config), communicator.rank == 0
    log = log_file(folder / LOG_NAME) if first else nullcontext()
    with log, training_run(chosen, svd_config, communicator, resolved(flags)) as trainer:
        begin()
        trainer.run()
        if first:
            sys.stdout.write(f"{trainer.checkpoints.newest()}\n")


class BesideBars(logging.StreamHandler):
    """Writes lines to standard error above the progress bars that are drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Adds the log's lines to a file as well, and the error that ends the run."""
    try:
        file = open_private(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--train.output_dir: cannot write {path}: {reason(error)}") from error
    handler = logging.StreamHandler(file)
    handler.setFormatter(LineFormatter(LOG_FORMAT))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        trace = None if isinstance(error, UserError) else sys.exc_info()
        handler.handle(logging.makeLogRecord({"msg": f"error: {error}", "exc_info": trace}))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        file.close()


def resolved(flags: Namespace) -> Dict[str, Any]:
    """All flags as plain values: a YAML file for `--config`."""
    values = {name: value for name, value in flags.as_dict().items() if name != "config"}
    return json.loads(json.dumps(values))


if __name__ == "__main__":
    run_command(main)
