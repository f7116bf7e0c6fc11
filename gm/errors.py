"""Errors that a user can cause and mend: one line that names the flag, the file and the remedy."""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, Callable, Iterable, NoReturn, Optional, Sequence, TextIO

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
RETRY_SECONDS = 0.05
CLEANING_SECONDS = 3.0
EXIT_USAGE = 2  # what argparse and POSIX utilities return for unusable arguments or input


MOST_CHARACTERS = 480  # of a line; of a longer one beginning and end are shown, which name the place and the remedy


class UserError(Exception):
    """A failure whose message is all that the user needs: shown on one line, without a traceback."""


def one_line(text: str) -> str:
    """A text as the screen gets it: no character of it, such as of a file's name, moves the cursor or starts a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LineFormatter(logging.Formatter):
    """Makes each message of the log one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


def start_log(
    level: int = logging.WARNING, line: str = "%(message)s", handler: Optional[logging.Handler] = None
) -> None:
    """Sends log messages from `level` on, each as a `line`, to a handler, by default one to the standard error."""
    handler = handler or logging.StreamHandler()
    handler.setFormatter(LineFormatter(line))
    logging.basicConfig(level=level, handlers=[handler])


def shown(line: str) -> str:
    """A line as the screen gets it, which has an end."""
    line = one_line(line)
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} … {line[-half:]}"


def run_command(main: Callable[[Optional[Sequence[str]]], None], argv: Optional[Sequence[str]] = None) -> NoReturn:
    """Runs a command's `main` and exits the process.

    The exit code is 0 on success; 2 with one `error: …` line for a :class:`UserError`, and for a file that the system
    refuses; 128 and the signal's number after Ctrl-C, SIGTERM or SIGHUP, when what is half-written has been removed. A
    reader of the standard output that goes away ends nothing; a full disk under it is told at the end. What libraries
    and their compilers print there goes to the standard error.
    """
    sys.stdout, sys.stderr = out, _ = _Output(_results()), _Output(sys.stderr)
    stop = _Stop(os.getpid())
    for number in STOPPING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # not where it is ignored: nohup
            signal.signal(number, stop)
    try:
        main(argv)
        if stop.received:  # and what was raised was swallowed
            sys.exit(128 + stop.received)
        out.flush()
        if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
            raise UserError(f"the standard output cannot be written: {out.failure.strerror}; all files are written")
    except BaseException as error:
        if stop.received:  # the error may be what others have made of its exception
            sys.exit(128 + stop.received)
        if isinstance(error, UserError):
            sys.stderr.write(f"error: {shown(str(error))}\n")
        elif isinstance(error, OSError) and error.filename is not None:
            sys.stderr.write(f"error: {shown(f'cannot use {error.filename}: {error.strerror}')}\n")
        else:
            raise
        sys.exit(EXIT_USAGE)
    sys.exit(0)


def _results() -> Optional[TextIO]:
    """The standard output for this program's lines alone, with any name that a file has, as the bytes that it is."""
    if sys.stdout is None or sys.stderr is None or sys.stdout is not sys.__stdout__:
        return sys.stdout
    sys.stdout.flush()
    results = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return open(results, "w", encoding=sys.stdout.encoding, errors="surrogateescape")


class _Stop:
    """A signal's handler that ends the program in good order; in a process forked from it, at once.

    Not while a module is imported: what C extensions make of an exception in their beginning is another error, or none.

    Attributes:
        received: the signal's number, or 0.
    """

    def __init__(self, process: int) -> None:
        self.process, self.received, self._since = process, 0, 0.0

    def __call__(self, number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != self.process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if _is_import(frame):
            again = threading.Timer(RETRY_SECONDS, os.kill, (self.process, number))
            again.daemon = True
            again.start()
            return
        now = time.monotonic()
        if self.received and now < self._since + CLEANING_SECONDS:
            return  # a second one must not stop the cleaning
        if not self.received:
            sys.stderr.write(f"interrupted ({signal.Signals(number).name})\n")
        self.received, self._since = number, now
        raise KeyboardInterrupt


def _is_import(frame: Optional[FrameType]) -> bool:
    """Whether a frame, or one that called it, imports a module."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


class _Output:
    """Standard output or error that may be closed, or be closed meanwhile: then nothing more is written.

    Attributes:
        failure: the error that ended it, if one did.
    """

    def __init__(self, stream: Optional[TextIO]) -> None:
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115, to the program's end
        self.failure: Optional[OSError] = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes, or does nothing."""
        self._try(self.stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes, or does nothing."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flushes, or does nothing."""
        self._try(self.stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except OSError as error:
            self.failure = self.failure or error
            with suppress(OSError, ValueError):  # what is buffered goes there at the program's end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
