"""A run's folder of checkpoints: one folder each, complete or absent, the newest few kept."""

import logging
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional

from gm.errors import UserError
from gm.files import locked, make_output_dir, open_private, reason, remove_dir, remove_leftovers

RESUME = "--train.resume"
FOLDER, PREFIX, LOCK = "checkpoints", "step_", ".lock"
STEP = re.compile(re.escape(PREFIX) + r"\d{8,}")
AUTO = "auto"

logger = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of a run.

    Args:
        output_dir: the run's folder.
        keep: how many of the newest stay; 0 keeps all.
    """

    def __init__(self, output_dir: Path, keep: int = 0) -> None:
        self.output_dir, self.keep = output_dir, keep
        self.folder = output_dir / FOLDER

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is or will be."""
        return self.folder / f"{PREFIX}{step:08d}"

    def all(self) -> List[Path]:
        """The checkpoints, oldest first; a folder that someone renamed is left alone."""
        found = (path for path in self.folder.glob(f"{PREFIX}*") if path.is_dir())
        return sorted(path for path in found if STEP.fullmatch(path.name))

    def newest(self) -> Optional[Path]:
        """The last checkpoint, if there is one."""
        return max(self.all(), default=None)

    def find(self, resume: str) -> Optional[Path]:
        """The checkpoint that `--train.resume` means; None to start anew.

        Args:
            resume: "" starts anew; "auto" takes the newest checkpoint of this run, if there is one; else the path of a
                checkpoint, or of a run, whose newest is taken.

        Raises:
            UserError: there is no such checkpoint, or a new run would mix its checkpoints with those of another.
        """
        if resume == AUTO:
            return self.newest()
        if not resume:
            if self.all():
                raise UserError(
                    f"--train.output_dir: {self.output_dir} has the checkpoints of an earlier run; {RESUME}=auto goes "
                    "on with it, another folder starts anew"
                )
            return None
        path = Path(resume)
        found = path if path.name.startswith(PREFIX) else CheckpointFolder(path).newest()
        if found is None or not found.is_dir():
            raise UserError(f"{RESUME}: {path} is neither a checkpoint's folder ({PREFIX}…) nor a run that has one")
        newest = self.newest()
        if newest is not None and newest.resolve() != found.resolve():
            raise UserError(
                f"{RESUME}: {path} is not the newest checkpoint in {self.output_dir}, which is {newest.name}; remove "
                "the later ones or name another --train.output_dir"
            )
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of the folder, and removes what a killed one left half-written.

        Raises:
            UserError: another run is writing there, or the folder cannot be written.
        """
        make_output_dir(self.output_dir, "--train.output_dir")
        try:
            file = open_private(self.output_dir / LOCK)
        except OSError as error:
            raise UserError(f"--train.output_dir: cannot write {self.output_dir / LOCK}: {reason(error)}") from error
        with file:
            if not locked(file.fileno()):
                raise UserError(f"--train.output_dir: another run is writing to {self.output_dir}")
            remove_leftovers(self.folder)
            for path in self.folder.glob(f".{PREFIX}*"):
                shutil.rmtree(path, ignore_errors=True)
            yield

    def prune(self) -> None:
        """Removes all but the newest `keep`."""
        for path in self.all()[: -self.keep] if self.keep else []:
            try:
                remove_dir(path)  # never half a checkpoint under a whole one's name
            except OSError as error:
                logger.warning("cannot remove the old checkpoint %s: %s", path, error)
