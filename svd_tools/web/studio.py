"""What the page's tabs share: the processes that work, the queue before them, the files found, and what is uploaded."""

import asyncio
import secrets
from functools import partial
from pathlib import Path
from typing import Annotated, Any, AsyncIterator, Callable, Dict, NamedTuple, Optional, Tuple, Union

import gradio as gr

from gm.config.values import Range
from gm.errors import UserError
from svd_tools.web import views
from svd_tools.web.jobs import Job, JobQueue
from svd_tools.web.making import PictureRequest, VideoRequest, Weights
from svd_tools.web.models import Found, find_files
from svd_tools.web.process import Process
from svd_tools.web.reader import Uploads
from svd_tools.web.server import served

UPLOADS = "uploads"
FOLDERS = ("examples", "pictures", "results", UPLOADS)  # of the page's folder
READING_SECONDS = 120.0  # of an upload, after which it is refused
WATCH_SECONDS = 0.2  # between looks at a job
MAX_SEED = 2**53 - 1  # what a browser counts exactly
Seed = Annotated[int, Range(0, MAX_SEED)]
QUICK = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # events that are done at once
LASTING = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}  # those with a job


class Limits(NamedTuple):
    """How much may be uploaded: bytes of a file, millions of pixels of a picture."""

    max_bytes: int
    max_megapixels: int

    def __str__(self) -> str:
        return f"At most {self.max_bytes / 1e6:g} MB and {self.max_megapixels} million pixels"


class Studio:
    """What works behind the page.

    Args:
        models: the folder of checkpoints and LoRAs.
        folder: an empty folder for uploads and results; the server gives its files to the browser.
        limits: of uploads.
        make: gives the function of the model's process; see :class:`svd_tools.web.making.Maker`.
    """

    def __init__(self, models: Path, folder: Path, limits: Limits, make: Callable[[], Any]) -> None:
        self.models, self.folder, self.limits = models, folder, limits
        self.found: Found = find_files(models)
        self.examples, self._copies, results, uploads = (folder / name for name in FOLDERS)
        for part in (self.examples, self._copies, results, uploads):
            part.mkdir(mode=0o700)
        self.jobs = JobQueue(self._make, results, (self._copies, uploads))
        self._model = Process(make, "the model's process")
        self._reader = Process(partial(Uploads, limits.max_megapixels), "the reading of uploads")
        self._loaded: Optional[Weights] = None

    def close(self) -> None:
        """Ends the processes."""
        self._model.stop()
        self._reader.stop()

    def look_again(self) -> Found:
        """Finds the files that are in the folder now."""
        self.found = find_files(self.models)
        return self.found

    def uploaded(self, event: gr.EventData) -> Tuple[str, str]:
        """The path and the name of the uploaded file that an event names: nothing but a file of the page's own folder.

        Raises:
            UserError: it names another one.
        """
        path, name = served(str(getattr(event, "path", "")), self.folder), str(getattr(event, "name", "file"))
        if path is None:
            raise UserError(f"{name} was not uploaded, or is not kept any more; upload it again")
        return str(path), name

    async def read(self, method: str, *arguments: Any) -> Any:
        """What a method of :class:`svd_tools.web.reader.Uploads` makes of an upload."""
        return await asyncio.to_thread(self.read_now, method, *arguments)

    def read_now(self, method: str, *arguments: Any) -> Any:
        """As :meth:`read`, where nothing else waits."""
        return self._reader.call((method, *arguments), timeout=READING_SECONDS)

    def new_copy(self) -> str:
        """A path for a picture that the browser is to show; nobody can guess it."""
        return str(self._copies / f"{secrets.token_hex(16)}.jpg")

    def submit(self, make_request: Callable[[str], Union[VideoRequest, PictureRequest]]) -> Job:
        """Puts a request, made for a folder, into the queue."""
        return self.jobs.submit(lambda folder: make_request(str(folder)))

    def cancel(self, key: str) -> Any:
        """Lets a job be, within a step; what its Cancel button is then."""
        job = self.jobs.find(key)
        if job is not None:
            self.jobs.cancel(job)
        return gr.update(interactive=False)

    async def watch(self, job: Job) -> AsyncIterator[Job]:
        """Yields a job whenever it has changed, until it is finished."""
        version = -1
        while True:
            job.look()
            if job.version != version:
                version, finished = job.version, job.finished
                yield job
                if finished:
                    return
            await asyncio.sleep(WATCH_SECONDS)

    def _make(self, request: Union[VideoRequest, PictureRequest], on_report: Callable[[Any], bool]) -> Dict[str, Any]:
        """Does a job in the model's process; for another model, in a new one, so that memory is given back."""
        if self._loaded not in (None, request.weights):
            self._model.stop()
        self._loaded = request.weights

        def on_message(report: Any) -> None:
            if not on_report(report):
                self._model.cancel()

        try:
            return self._model.call(request, on_message)
        except UserError as error:
            raise UserError(views.plain(error)) from error
