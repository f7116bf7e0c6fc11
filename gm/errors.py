"""Errors that a user can cause and mend: one line that names the flag, the file and the remedy."""

import sys
from typing import Callable, NoReturn, Optional, Sequence

EXIT_USAGE = 2  # what argparse and POSIX utilities return for unusable arguments or input


class UserError(Exception):
    """A failure whose message is all that the user needs: shown on one line, without a traceback."""


def run_command(main: Callable[[Optional[Sequence[str]]], None], argv: Optional[Sequence[str]] = None) -> NoReturn:
    """Runs a command's `main` and exits the process.

    The exit code is 0 on success, 2 with one `error: …` line for a :class:`UserError`, 130 after Ctrl-C.
    """
    try:
        main(argv)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    sys.exit(0)
