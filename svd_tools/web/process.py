"""A function in a process of its own, called over a pipe: what it does to memory, or dies of, stays there."""

import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Callable, Optional

from gm.backend.memory import OutOfMemory
from gm.errors import UserError

STOP_SECONDS = 5.0  # that a process has to end by itself
RESULT, ERROR, FATAL, CANCELLED, REPORT = "result", "error", "fatal", "cancelled", "report"
LONGEST = 200  # characters of an unexpected error

class Cancelled(Exception):
    """The call was cancelled."""


class Reporter:
    """What the function says while it works; raises :class:`Cancelled` if nobody wants its result any more."""

    def __init__(self, pipe: Connection, cancelled: Any) -> None:
        self._pipe, self._cancelled = pipe, cancelled

    def __call__(self, report: Any) -> None:
        """Sends a report to the caller."""
        if self._cancelled.is_set():
            raise Cancelled
        self._pipe.send((REPORT, report))


class Process:
    """Calls of one function, one at a time, in a process that is started when it is needed, and again when it died.

    Args:
        make: gives the function; called in the process, so it can be pickled. The function takes a request and a
            :class:`Reporter`.
        title: of the process, for error lines.
    """

    def __init__(self, make: Callable[[], Callable[[Any, Reporter], Any]], title: str) -> None:
        self.make, self.title = make, title
        self._context = get_context("spawn")  # MindSpore's and the decoders' threads do not survive a fork
        self._cancelled = self._context.Event()
        self._calling, self._process, self._pipe = threading.Lock(), None, None

    @property
    def pid(self) -> Optional[int]:
        """The running process's number."""
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    def call(
        self, request: Any, on_report: Optional[Callable[[Any], None]] = None, timeout: Optional[float] = None
    ) -> Any:
        """The function's result.

        Args:
            request: what the function gets.
            on_report: is called with each report, in this thread.
            timeout: seconds between reports after which the process is ended.

        Raises:
            UserError: the function's own, or the process died or took too long.
            Cancelled: see :meth:`cancel`.
        """
        with self._calling:
            self._cancelled.clear()
            process = self._start()
            try:
                self._pipe.send(request)
                while True:
                    if not self._pipe.poll(timeout):
                        self.stop()
                        raise UserError(f"{self.title} took more than {timeout:.0f} seconds and was ended")
                    kind, content = self._pipe.recv()
                    if kind != REPORT:
                        break
                    if on_report is not None:
                        on_report(content)
            except (EOFError, OSError) as error:
                raise UserError(self._obituary(process)) from error
            if kind == FATAL:
                self.stop()
        if kind in (ERROR, FATAL):
            raise UserError(content)
        if kind == CANCELLED:
            raise Cancelled
        return content

    def cancel(self) -> None:
        """Ends the present call at its next report."""
        self._cancelled.set()

    def stop(self) -> None:
        """Ends the process; the next call starts another."""
        if self._process is None:
            return
        self._pipe.close()
        self._process.join(0 if self._calling.locked() else STOP_SECONDS)
        for end in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                end()
                self._process.join(STOP_SECONDS)
        self._process = None

    def _start(self) -> BaseProcess:
        if self.pid is not None:
            return self._process
        self.stop()
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(theirs, self._cancelled, self.make), name=self.title, daemon=True
        )
        self._process.start()
        theirs.close()
        return self._process

    def _obituary(self, process: BaseProcess) -> str:
        process.join(STOP_SECONDS)
        code = process.exitcode
        why = f"exit code {code}"
        if code is not None and code < 0:
            why = f"signal {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                why += ", as the system does when memory runs out"
        return f"{self.title} ended unexpectedly ({why}); the next run starts it anew"


def _serve(pipe: Connection, cancelled: Any, make: Callable[[], Callable[[Any, Reporter], Any]]) -> None:
    """The process's life: answers requests until the other end of the pipe is closed, or memory ran out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the page ends its processes itself
    function, reporter = None, Reporter(pipe, cancelled)
    with suppress(EOFError, BrokenPipeError):
        while True:
            request = pipe.recv()
            try:
                function = function or make()
                answer = RESULT, function(request, reporter)
            except Cancelled:
                answer = CANCELLED, None
            except OutOfMemory as error:
                pipe.send((FATAL, str(error)))  # what is left in memory is anyone's guess
                return
            except UserError as error:
                answer = ERROR, str(error)
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                line = " ".join(str(error).split())[:LONGEST]
                answer = ERROR, f"an unexpected {type(error).__name__}: {line}; the terminal has the details"
            pipe.send(answer)
