"""What verbs share: their common options, the report of a run, a line of progress."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import UsageError
from ..nearest import unknown

Result = dict[str, Any]
"""what a verb reports with --json"""


@dataclass(frozen=True)
class Common:
    """Options of every verb."""

    json: bool = False
    """print one JSON object as the last line on standard output"""
    debug: bool = False
    """show a traceback when something fails"""


@dataclass(frozen=True)
class Opening(Common):
    """Options of verbs that open one MODEL."""

    heads: int | None = None
    """attention heads, where the weights do not tell them"""


@dataclass(frozen=True)
class Computing(Opening):
    """Options of verbs that send images through it."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    workers: int = -1
    """decoding processes (default: up to four)"""


def newest(run: Path) -> int | None:
    """The step that a run will go on from; None: there is no such run yet."""
    from ..checkpoint import latest

    return latest(run) if (run / "config.json").exists() else None


def run_result(run: Any, resumed_from: int | None) -> Result:
    """What a training verb reports of its run."""
    losses = [event["loss"] for event in run.metrics() if "loss" in event]
    return {
        "run": str(run.path),
        "step": run.latest(),
        "steps": run.config.steps,
        "resumed_from": resumed_from,
        "loss": losses[-1] if losses else None,
        "figures": sorted(str(path) for path in run.figures.glob("*.png")),
    }


@contextlib.contextmanager
def progress_line(console: Any) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """One line that says what is being done and how far it is; gone when it is done."""
    from rich.live import Live

    line = Live(console=console.rich, transient=True, auto_refresh=False)

    def of(name: str) -> Callable[[int, int], None]:
        def at(done: int, total: int) -> None:
            line.start()
            line.update(f"{name}: {done:,} of {total:,} images", refresh=True)
            if done >= total:  # fine-tuning has a bar of its own
                line.stop()

        return at

    try:
        yield of
    finally:
        line.stop()


def words(text: str, known: tuple[str, ...], option: str) -> tuple[Any, ...]:
    """Split words with commas between, all of them known."""
    given = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    wrong = [word for word in given if word not in known]
    if wrong:
        raise UsageError(f"{option} {text}: {unknown('choice', wrong[0], known)}")
    if not given:
        raise UsageError(f"{option} {text}: give some of {', '.join(known)}, with commas between")
    return given
