"""Curves and pictures of a run for TensorBoard.

tensorboardX's own writer hands events to a thread that a full disk kills; then its queue fills, and the run hangs.
Here every event is written and flushed at once, so that a killed run keeps its curves, and a failure is only told.
"""

import logging
import os
import time
from contextlib import suppress
from typing import Mapping, Optional

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from gm.files import PathLike, reason

RGB_CHANNELS = 3
RETRY_SECONDS = 60.0  # after a failure to write

logger = logging.getLogger(__name__)


class MetricsLog:
    """Writes TensorBoard event files into a folder; `tensorboard --logdir=FOLDER` shows them.

    A failure to write is logged once, events are dropped for a minute, then a new file is tried: with a full disk
    training goes on, and the curves do when there is room again.

    Args:
        folder: where the files are; made with the first event.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = os.fspath(folder)
        self._writer: Optional[EventsWriter] = None
        self._files, self._failed, self._retry_at = 0, False, 0.0

    def start(self, step: int) -> None:
        """Tells TensorBoard to forget what a run that was killed wrote about later steps."""
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def animation(self, step: int, name: str, gif: bytes, height: int, width: int) -> None:
        """A moving picture, shown under Images; `gif` is the file's content."""
        image = Summary.Image(height=height, width=width, colorspace=RGB_CHANNELS, encoded_image_string=gif)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def close(self) -> None:
        """Closes the file; a later event opens another one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):  # what is left in its buffer could not be written before either
                writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        if event.wall_time < self._retry_at:
            return
        try:
            if self._writer is None:
                self._writer = self._open()
            self._writer.write_event(event)
            self._writer.flush()
            self._failed = False
        except OSError as error:
            if not self._failed:
                problem = reason(error)
                logger.warning("cannot write TensorBoard's files in %s: %s; training goes on", self.folder, problem)
            self._failed, self._retry_at = True, event.wall_time + RETRY_SECONDS
            self.close()

    def _open(self) -> EventsWriter:
        os.makedirs(self.folder, exist_ok=True)
        self._files += 1
        return EventsWriter(os.path.join(self.folder, "events"), f".{os.getpid()}.{self._files}")
