"""Gathers the free photographs of photo_sources.tsv from unpacked Debian packages into one folder.

    mkdir packages && cd packages
    apt-get download $(tail -n +2 ../svd_tiny/photo_sources.tsv | cut -f3 | sort -u)
    for deb in *.deb; do dpkg -x "$deb" "${deb%%_*}"; done
    cd .. && python svd_tiny/collect_photos.py --packages packages --output_dir photos

Training photographs land in photos/train, held-out ones in photos/eval, with the list of authors and licences beside.
"""

import io
import logging
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Optional, Sequence

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm.config.command_parser import CommandParser
from gm.config.values import Range
from gm.errors import UserError, run_command, start_log
from gm.files import FilePath, PathLike, atomic_file, make_output_dir, own_folder
from svd_tiny.photo_sources import SOURCES, PhotoSource, read_photo_sources
from svd_tiny.photos import read_photo

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95


def collect_photos(packages: PathLike, output_dir: PathLike, max_side: int, sources: Sequence[PhotoSource]) -> int:
    """Writes each photograph as JPEG to `output_dir`/train or `output_dir`/eval; those already there are kept.

    Args:
        packages: the folder in which each package was unpacked into a folder of its own name.
        output_dir: an existing folder.
        max_side: larger photographs are shrunk to this many pixels on the longer side.
        sources: what to collect.

    Returns:
        how many photographs are there now; each that could not be had is logged.

    Raises:
        UserError: none could be had, or a file cannot be written.
    """
    collected = 0
    for source in sources:
        target = Path(output_dir) / source.split / f"{source.name}.jpg"
        try:
            if not target.exists():
                _convert(source.read(packages), target, max_side)
        except UserError as error:
            logger.warning("%s is left out: %s", source.name, error)
            continue
        collected += 1
    if not collected:
        raise UserError(f"--packages: no photograph of the list is in {packages}; unpack packages there (see --help)")
    return collected


def _convert(content: bytes, target: Path, max_side: int) -> None:
    """Any image file's bytes -> a JPEG file without metadata, shrunk if need be."""
    own_folder(target.parent)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / target.stem
        original.write_bytes(content)
        image = read_photo(original, max_side)
    with atomic_file(target) as temporary:
        temporary.write_bytes(_jpeg(image))


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    start_log(logging.INFO)
    parser = CommandParser(prog="collect_photos.py", description=__doc__)
    parser.add_argument("--packages", type=FilePath, required=True, help="folder of unpacked packages, PACKAGE/usr/…")
    parser.add_argument("--output_dir", type=FilePath, required=True, help="folder to write train/ and eval/ to")
    side = Annotated[int, Range(64, 16384)]
    parser.add_argument("--max_side", type=side, default=1600, help="pixels on the longer side, at most")
    args = parser.parse_args(argv)
    output_dir = make_output_dir(args.output_dir, "--output_dir")
    sources = read_photo_sources()
    count = collect_photos(args.packages, output_dir, args.max_side, sources)
    with atomic_file(output_dir / SOURCES.name) as temporary:
        temporary.write_bytes(SOURCES.read_bytes())
    held = len(list((output_dir / "eval").glob("*.jpg")))
    sys.stdout.write(f"{count} of {len(sources)} photographs in {output_dir}, {held} of them held out (eval)\n")


if __name__ == "__main__":
    run_command(main)
