"""The pieces that a comparison is made of: each is written whole, and not made again.

`made.json` says of every piece what it was made from; a piece that was made from something else, of a run
that has gone on, say, is made anew.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoint import write_atomically
from ..run import Run

MADE = "made.json"
"""what each piece was made from"""


def stamp(run: Run, step: int) -> list[int]:
    """What tells a checkpoint from another of the same run and step: when it was written, and its bytes' number."""
    files = [f.stat() for f in (run.path / "checkpoints" / f"step-{step:07d}").glob("*")]
    return [max((file.st_mtime_ns for file in files), default=0), sum(file.st_size for file in files)]


class Pieces:
    """The files of one comparison."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / MADE
        self.made: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}

    def make(self, name: str, asked: dict[str, Any], build: Callable[[Path], object]) -> None:
        """Have a piece made, unless it is there and was made from the same.

        Args:
            name: its file, below the folder.
            asked: what it depends on, as JSON has it.
            build: writes the file that it is given, whole or not at all.
        """
        asked = json.loads(json.dumps(asked))
        file = self.folder / name
        if self.made.get(name) == asked and file.is_file():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        build(file)
        self.made[name] = asked
        write_atomically(self.file, json.dumps(self.made, indent=1) + "\n")
