"""Stop politely: the first signal asks the loop to save and leave, a second Ctrl-C leaves at once."""

import signal
import threading
from types import FrameType, TracebackType

EXIT_STOPPED = 75
"""exit code of a run that was stopped by a signal after saving (EX_TEMPFAIL: start it again)"""


class Stopped(Exception):
    """The run was asked to stop, saved, and left; the same command continues it."""


class StopSignals:
    """While entered, SIGTERM, SIGINT and SIGUSR1 set `asked` instead of killing the process."""

    WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals there only
            self._before = {s: signal.signal(s, self._receive) for s in self.WATCHED}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked == "SIGINT":
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
