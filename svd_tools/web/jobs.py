"""The page's queue: videos are made one after the other; each visitor may watch, cancel and come back to their own."""

import logging
import secrets
import shutil
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Optional, Sequence

from gm.errors import UserError
from svd_tools.web.making import Progress
from svd_tools.web.process import Cancelled

MOST_WAITING = 20
KEPT_SECONDS = 3600.0  # that a finished job's files, and uploads, stay
TIDY_SECONDS = 60.0  # between looks for what is older
MOST_KEPT = 200  # finished jobs
ABANDONED_SECONDS = 30.0  # without anybody watching, after which a job is cancelled
WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"

logger = logging.getLogger(__name__)


class Job:
    """One video, or picture, in the queue.

    Attributes:
        key: what a visitor names it by; nobody else can guess it.
        state: WAITING, RUNNING, DONE, FAILED or CANCELLED.
        version: grows whenever something below changes.
        place: of those waiting, from 1.
        progress, preview: of those running.
        settings: of those done.
        error: of those failed, one line.
    """

    def __init__(self, folder: Path) -> None:
        self.key = secrets.token_urlsafe(16)
        self.folder = folder / self.key
        self.request: Any = None
        self.state, self.version, self.place = WAITING, 0, 0
        self.progress: Optional[Progress] = None
        self.preview, self.error = "", ""
        self.settings: Dict[str, Any] = {}
        self.unwanted = False
        self.seen = self.changed = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in (DONE, FAILED, CANCELLED)

    @property
    def abandoned(self) -> bool:
        """Whether its visitor cancelled it or has gone away."""
        return self.unwanted or time.monotonic() - self.seen > ABANDONED_SECONDS

    def look(self) -> None:
        """Notes that somebody is watching."""
        self.seen = time.monotonic()

    def change(self, **values: Any) -> None:
        """Sets attributes for the watchers to see."""
        vars(self).update(values)
        self.changed = time.monotonic()
        self.version += 1


class JobQueue:
    """Runs jobs in the order in which they came, in a thread.

    Args:
        run: makes a job's video; it is given a function that takes its reports, which says whether to go on.
        folder: in which each job gets a folder of its own.
        uploads: folders whose files are removed as late as a job's.
    """

    def __init__(
        self, run: Callable[[Any, Callable[[Any], bool]], Dict[str, Any]], folder: Path, uploads: Sequence[Path] = ()
    ) -> None:
        self._run, self._folder, self._uploads = run, folder, uploads
        self._jobs: Dict[str, Job] = {}
        self._waiting: Deque[Job] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="jobs").start()

    def submit(self, make_request: Callable[[Path], Any]) -> Job:
        """Puts a job behind the others.

        Args:
            make_request: what to do, given the folder for its files.

        Raises:
            UserError: too many are waiting.
        """
        with self._changed:
            self._forget()
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} videos are waiting already; try again when some are done")
            job = Job(self._folder)
            job.folder.mkdir(mode=0o700)
            job.request = make_request(job.folder)
            self._jobs[job.key] = job
            self._waiting.append(job)
            self._count()
            self._changed.notify()
        return job

    def find(self, key: str) -> Optional[Job]:
        """The job of a key, if it is still known."""
        return self._jobs.get(key)

    def cancel(self, job: Job) -> None:
        """Takes a job out of the queue, or lets it end at its next report."""
        with self._changed:
            job.unwanted = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, CANCELLED)
                self._count()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._forget()
                    self._changed.wait(TIDY_SECONDS)
                job = self._waiting.popleft()
                if job.abandoned:
                    self._end(job, CANCELLED)
                    continue
                job.change(state=RUNNING)
                self._count()
            self._do(job)

    def _do(self, job: Job) -> None:
        def on_report(report: Any) -> bool:
            job.change(**{"progress": report} if isinstance(report, Progress) else {"preview": report})
            return not job.abandoned

        try:
            self._end(job, DONE, settings=self._run(job.request, on_report))
        except Cancelled:
            self._end(job, CANCELLED)
        except UserError as error:
            self._end(job, FAILED, error=str(error))
        except Exception as error:  # whatever it is, the others' turn comes
            logger.exception("a video failed")
            self._end(job, FAILED, error=f"an unexpected {type(error).__name__}; the terminal has the details")

    def _end(self, job: Job, state: str, **values: Any) -> None:
        job.change(state=state, preview="", **values)
        if state != DONE:
            shutil.rmtree(job.folder, ignore_errors=True)

    def _count(self) -> None:
        for place, job in enumerate(self._waiting, start=1):
            if job.place != place:
                job.change(place=place)

    def _forget(self) -> None:
        """Removes the oldest finished jobs with their files, and old uploads."""
        finished = [job for job in self._jobs.values() if job.finished]
        for index, job in enumerate(finished):
            if index < len(finished) - MOST_KEPT or time.monotonic() - job.changed > KEPT_SECONDS:
                shutil.rmtree(job.folder, ignore_errors=True)
                del self._jobs[job.key]
        for path in (path for folder in self._uploads for path in folder.rglob("*")):
            with suppress(OSError):
                if path.is_file() and time.time() - path.stat().st_mtime > KEPT_SECONDS:
                    path.unlink()
