"""What a person sees while a run goes on: a few lines that say what will happen, then a progress bar.

Everything goes to standard error, and only rank 0 speaks; standard output belongs to `--json`.
"""

import os
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
    """A progress bar with rate, loss and time left."""

    def __init__(self, rich: RichConsole, what: str, total: int, done: int):
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
