"""What a person sees while a run goes on: a few lines that say what will happen, then a progress bar.

Everything goes to standard error, and only rank 0 speaks; standard output belongs to `--json`.
"""

import os
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

UNSEEN = 160
"""columns of output that is no terminal"""
EVERY = 60.0
"""seconds between two lines of progress where there is no terminal for a bar"""


class Console:
    """Lines and one progress bar on standard error; lines go to the run's log.txt as well."""

    def __init__(self, speaks: bool = True, log: Path | None = None):
        self.rich = RichConsole(stderr=True, quiet=not speaks, highlight=False, soft_wrap=True)
        if not self.rich.is_terminal and "COLUMNS" not in os.environ:
            self.rich.width = UNSEEN  # a log file has room for a table's every column
        self.log = log if speaks else None

    def say(self, line: str) -> None:
        """Print a line above the bar, and keep it."""
        self.rich.print(line, markup=False)
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def bar(self, what: str, total: int, done: int = 0) -> "Bar":
        """Show a bar of `total` steps while the returned object is entered."""
        return Bar(self.rich, what, total, done)


class Bar:
    """A progress bar with rate, loss and time left; where there is no terminal, a line of them now and then."""

    def __init__(self, rich: RichConsole, what: str, total: int, done: int):
        self._rich, self._what, self._total, self._first = rich, what, total, done
        self._began = self._said = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=rich,
            transient=True,
        )
        self._task = self._progress.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def at(self, done: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if not self._rich.is_terminal and now - self._said >= EVERY and done > self._first:
            self._said = now
            left = (now - self._began) / (done - self._first) * (self._total - done)
            self._rich.print(f"{self._what}: {done:,} of {self._total:,}  {note}  {duration(left)} left", markup=False)


def duration(seconds: float) -> str:
    """A length of time for people.

    Example:
        >>> duration(7.25), duration(100), duration(5400)
        ('7.2 s', '1.7 minutes', '1.5 hours')
    """
    unit, name = next((pair for pair in ((3600, "hours"), (60, "minutes")) if seconds >= pair[0]), (1, "s"))
    return f"{seconds / unit:.2g} {name}" if seconds < 10 * unit else f"{seconds / unit:.0f} {name}"
