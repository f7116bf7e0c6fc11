"""Serves a page in which pictures become videos: upload one, move the crop, press Run.

    python svd_tools/page.py
    python svd_tools/page.py --models weights --port 8000

The page is for this machine alone unless --host says otherwise. It needs Gradio: pip install -r requirements-page.txt.
"""

import ipaddress
import logging
import os
import shutil
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Annotated, List, Optional, Sequence, Tuple

from jsonargparse import Namespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.image_reader import MAX_PIXELS
from gm.backend.runtime import RUNTIME_FLAGS
from gm.config.command_parser import CommandParser
from gm.config.values import Range
from gm.errors import UserError, run_command, start_log
from gm.files import FilePath, read_text, reason

PROJECT = Path(__file__).resolve().parents[1]
MEGA = 10**6
MOST_MEGAPIXELS = MAX_PIXELS // MEGA
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}

logger = logging.getLogger(__name__)


def build_parser() -> CommandParser:
    """The command's flags."""
    summary, _, details = __doc__.split("\n\n")
    parser = CommandParser(prog="page.py", description=f"{summary} {details}")
    add = parser.add_argument
    add("--models", type=FilePath, default="checkpoints", help="folder searched for checkpoints and LoRAs")
    add("--host", type=str, default="127.0.0.1", help="address to listen on; 0.0.0.0 is every network of this machine")
    add("--port", type=Annotated[int, Range(1, 65535)], default=7860, help="port to listen on")
    auth = "text file of the visitors who may enter: name:password on each line"
    add("--auth", type=Optional[FilePath], default=None, help=auth)
    add("--share", type=bool, default=False, help="also serve the page at a public address, through Gradio's relay")
    add("--max_megabytes", type=Annotated[int, Range(1, 10_000)], default=64, help="of an uploaded file")
    add("--max_megapixels", type=Annotated[int, Range(1, MOST_MEGAPIXELS)], default=64, help="of an uploaded picture")
    for name, flag in RUNTIME_FLAGS.items():
        add(f"--{name}", **flag)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Serves the page until the program is stopped.

    Raises:
        UserError: Gradio is not installed, or a flag cannot be used.
    """
    flags = build_parser().parse_args(argv)
    start_log()
    auth = read_visitors(Path(flags.auth)) if flags.auth is not None else None
    models = Path(flags.models)
    models = models if models.is_dir() else PROJECT / models
    if not models.is_dir():
        raise UserError(f"--models: {flags.models} is no folder; name the one that your checkpoints are in")
    if auth is None and (flags.share or not is_loopback(flags.host)):
        logger.warning("anybody who reaches %s can use the page; --auth asks for a name and a password", flags.host)
    folder = Path(tempfile.mkdtemp(prefix="svd-page-")).resolve()
    try:
        serve(flags, models, folder, auth)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def serve(flags: Namespace, models: Path, folder: Path, auth: Optional[List[Tuple[str, str]]]) -> None:
    """Launches the page and waits for Ctrl-C or SIGTERM.

    Args:
        flags: the command's.
        models: the folder of checkpoints.
        folder: for uploads and results.
        auth: names and passwords of those who may enter; None lets everybody in.
    """
    os.environ.update(OFFLINE)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("the page needs Gradio: pip install -r requirements-page.txt") from error
    from svd_tools.web.layout import STYLE, build_page, make_theme
    from svd_tools.web.making import Maker
    from svd_tools.web.server import middleware
    from svd_tools.web.studio import UPLOADS, Limits, Studio

    os.environ["GRADIO_TEMP_DIR"] = str(folder / UPLOADS)
    limits = Limits(flags.max_megabytes * MEGA, flags.max_megapixels)
    studio = Studio(models, folder, limits, partial(Maker, flags.mode, flags.device_target))
    try:
        blocks = build_page(studio)
        _, address, public = blocks.launch(
            server_name=flags.host,
            server_port=flags.port,
            share=flags.share,
            auth=auth,
            allowed_paths=[str(folder)],  # what of it is served is the Gate's to say
            max_file_size=limits.max_bytes,
            app_kwargs={"middleware": middleware(folder, limits.max_bytes, is_loopback(flags.host))},
            theme=make_theme(),
            css_paths=STYLE,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
        )
        for line in filter(None, (address, public)):
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        threading.Event().wait()
    except OSError as error:
        raise UserError(f"--port: cannot listen on {flags.host}, port {flags.port}: {error}") from error
    finally:
        studio.close()


def read_visitors(path: Path) -> List[Tuple[str, str]]:
    """(name, password) of each line of a file.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"--auth: cannot read {path}: {why}") from error
    visitors = [(name, password) for name, _, password in (line.partition(":") for line in lines)]
    if not visitors or not all(name and password for name, password in visitors):
        raise UserError(f"--auth: {path} needs lines of the form name:password")
    return visitors


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which nobody else can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    run_command(main)
