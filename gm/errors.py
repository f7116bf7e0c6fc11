"""Errors that a user can cause and mend: one line that names the flag, the file and the remedy."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, Callable, Iterable, NoReturn, Optional, Sequence, TextIO

STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
EXIT_USAGE = 2  # what argparse and POSIX utilities return for unusable arguments or input


MOST_CHARACTERS = 480  # of a line; of a longer one beginning and end are shown, which name the place and the remedy


class UserError(Exception):
    """A failure whose message is all that the user needs: shown on one line, without a traceback."""


def shown(line: str) -> str:
    """A line as the screen gets it: no character of it moves the cursor or starts a new one, and it has an end."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} … {line[-half:]}"


def run_command(main: Callable[[Optional[Sequence[str]]], None], argv: Optional[Sequence[str]] = None) -> NoReturn:
    """Runs a command's `main` and exits the process.

    The exit code is 0 on success; 2 with one `error: …` line for a :class:`UserError`, and for a file that the system
    refuses; 128 and the signal's number after Ctrl-C, SIGTERM or SIGHUP, when what is half-written has been removed. A
    reader of the standard output that goes away ends nothing; a full disk under it is told at the end.
    """
    sys.stdout, sys.stderr = out, _ = _Output(sys.stdout), _Output(sys.stderr)
    for number in STOPPING:
        if signal.getsignal(number) is signal.SIG_DFL:  # not where it is ignored: nohup
            signal.signal(number, _Stop(os.getpid()))
    try:
        main(argv)
        out.flush()
        if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
            raise UserError(f"the standard output cannot be written: {out.failure.strerror}; all files are written")
    except UserError as error:
        sys.stderr.write(f"error: {shown(str(error))}\n")
        sys.exit(EXIT_USAGE)
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"error: {shown(f'cannot use {error.filename}: {error.strerror}')}\n")
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    sys.exit(0)


class _Stop:
    """A signal's handler that ends the program in good order; in a process forked from it, at once."""

    def __init__(self, process: int) -> None:
        self.process = process

    def __call__(self, number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != self.process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)  # a second one must not stop the cleaning
        sys.stderr.write(f"interrupted ({signal.Signals(number).name})\n")
        sys.exit(128 + number)


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
