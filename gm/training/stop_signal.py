"""SIGTERM, SIGHUP and Ctrl-C as a wish to stop, granted when the run's state can be saved."""

import logging
import os
import signal
from types import FrameType
from typing import Any, Dict, Optional

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

logger = logging.getLogger(__name__)


class StopSignal:
    """Inside the block the first signal only sets `received`; a second one has its usual effect.

    Attributes:
        received: the signal's name, or "".
    """

    def __init__(self) -> None:
        self.received = ""
        self._process = os.getpid()
        self._before: Dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore()

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self._restore()
        if os.getpid() != self._process:  # a worker that was forked from the run's process
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number).name
        logger.warning("%s: saving a checkpoint after this step, then stopping; again stops at once", self.received)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
