"""The list of free photographs that svd_tiny is trained and evaluated on: package, file, author and licence of each."""

import csv
from pathlib import Path
from typing import List, NamedTuple

from gm.errors import UserError
from gm.files import PathLike, open_input, reason
from svd_tiny.qt_resource import read_qt_resource

SOURCES = Path(__file__).with_name("photo_sources.tsv")
INSIDE = ".rcc:"  # "a.rcc:b.webp" is the entry b.webp of the Qt resource file a.rcc


class PhotoSource(NamedTuple):
    """One photograph of the list."""

    name: str  # unique; the stem of the collected file
    split: str  # "train" or "eval" (held out)
    package: str  # Debian package
    file: str  # path in the package; for an entry of a Qt resource file "<file>.rcc:<path inside>"
    author: str
    licence: str  # as the package's copyright file says; "(package default)" where it does not name the file

    def read(self, packages: PathLike) -> bytes:
        """The photograph's file, as packed.

        Args:
            packages: the folder in which each package was unpacked into a folder of its own name.

        Raises:
            UserError: it is not there.
        """
        path, inside, entry = self.file.partition(INSIDE)
        file = Path(packages) / self.package / (path + inside[:-1])
        if not inside:
            try:
                with open_input(file) as opened:
                    return opened.read()
            except OSError as error:
                raise UserError(f"no file {file}: {reason(error)}") from error
        entries = read_qt_resource(file)
        if entry not in entries:
            raise UserError(f"no {entry} in {file}")
        return entries[entry]


def read_photo_sources(path: PathLike = SOURCES) -> List[PhotoSource]:
    """Reads a list of sources: tab-separated, with a header line that names :class:`PhotoSource`'s fields."""
    with open(path, encoding="utf-8", newline="") as file:
        return [PhotoSource(**row) for row in csv.DictReader(file, delimiter="\t")]
