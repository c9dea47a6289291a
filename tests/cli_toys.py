"""What the tests of the command line share: small pictures, and a call with what it said."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unmask.cli import main

SHORT = ("--steps", "3", "--batch", "8", "--workers", "0", "--device", "cpu")
"""a run of a second"""


class Said(NamedTuple):
    code: int
    json: dict[str, Any]
    """the last line on standard output"""
    err: str
    """standard error"""

    @property
    def line(self) -> str:
        """The one line of a failure."""
        (line,) = [line for line in self.err.splitlines() if line.startswith(("error: ", "stopped: "))]
        assert self.json["ok"] is False
        assert line.partition(": ")[2] == self.json["error"]
        return line


def unmask(*words: Any) -> Said:
    """Call the command line with --json in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, words), "--json"])
    answer = json.loads(out.getvalue().splitlines()[-1])
    assert {"verb", "ok", "version", "seed", "seconds"} <= answer.keys()
    assert answer["ok"] == (code == 0)
    assert "Traceback" not in err.getvalue()
    return Said(code, answer, err.getvalue())


def pictures(folder: Path, count: int = 24, *, classes: str = "", mode: str = "RGB", side: int = 36) -> Path:
    """Write small smooth random PNGs: flat, or a sub-folder for each letter of `classes`."""
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (4, 4, 3) if mode == "RGB" else (4, 4), np.uint8)
        kind = i % len(classes) if classes else 0
        if classes:  # a class has its brightness
            coarse = (coarse // 4 + 60 * kind).astype(np.uint8)
        file = folder / (classes[kind] if classes else "") / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file)
    return folder
