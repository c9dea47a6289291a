"""`unmask compare DATA`: several methods, one budget, one protocol, one answer.

    plan       `settings`, what is asked; `images`, what is learned from and judged by
    train      `training`, one method after the other; or `entries` that exist
    judge      `scores`, all at once, and `answer`, who is best and by how much
    look       `looks`, the analyses and pictures that apply (`kinds`)
    write      `conduct`: all of this in its order, compare.json, then the page

Every piece is written whole and not made again (`pieces`): the same command goes on where it was stopped.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evaluate.features import Report
    from .conduct import Comparison


def compare(
    data: str,
    methods: Sequence[str] = (),
    runs: Sequence[str | Path] = (),
    *,
    note: Callable[[str], None] | None = None,
    progress: "Callable[[str], Report] | None" = None,
    **options: Any,
) -> "Comparison":
    """Train methods under one budget, or take runs that exist; judge them alike and say which to use.

    Args:
        data: the images that all train on, or were trained on, as for `open_source`.
        methods: recipes to train: `mae`, `beit`, `ibot`, `dino`, `supervised`, or published ones.
        runs: run directories to compare instead.
        note: told what is being done; None: standard error.
        progress: as for `evaluate`.
        options: fields of `settings.Settings`: budget, out, test, protocols, ...
    Returns:
        where the page is, and what it says.
    Raises:
        ValueError, OSError, RuntimeError: one line that names the value, the place and the cure.
    """
    from ..console import Console
    from .conduct import carry_out
    from .settings import Settings, settled

    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    if "out" in given:
        given["out"] = Path(given["out"])
    settings = settled(Settings(tuple(methods), tuple(map(str, runs)), **given))
    return carry_out(str(data), settings, note or Console().say, progress)
