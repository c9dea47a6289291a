"""What the benchmarks share, second part: what came of a race, and where that is said and written.

rows = compare(timings, reference="ours", floor="floor", images=32)
console.print(table(title, rows))
with Results(folder, title, facts()) as results:
    results.add(case, rows)
"""

import json
import multiprocessing
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from race import Timing


@dataclass(frozen=True)
class Row:
    """A contender beside the reference; the keys of its JSON line."""

    contender: str
    images_s: float
    """images a second, of the median round"""
    images_s_min: float
    images_s_max: float
    ratio: float
    """the contender's time over the reference's, median of rounds: how many times faster the reference is"""
    ratio_min: float
    ratio_max: float
    floor_share: float | None
    """the floor's time over the contender's, median of rounds; None without a floor"""
    peak_mb: float
    memory_ratio: float
    """the reference's peak over the contender's"""
    seconds: list[float]
    """of each round"""


def compare(timings: "Sequence[Timing]", reference: str, images: int, floor: str | None = None) -> list[Row]:
    """Set contenders side by side, round by round.

    Args:
        timings: of one race.
        reference: the contender that others are compared with.
        images: of a turn.
        floor: the contender that does only what cannot be left out, if there is one.
    """
    by_name = {timing.name: timing for timing in timings}
    ours, least = by_name[reference], by_name.get(floor or "")
    rows = []
    for name, seconds, peak in timings:
        ratios = [s / o for s, o in zip(seconds, ours.seconds, strict=True)]
        shares = None if least is None else [f / s for s, f in zip(seconds, least.seconds, strict=True)]
        rows.append(
            Row(
                contender=name,
                images_s=images / median(seconds),
                images_s_min=images / max(seconds),
                images_s_max=images / min(seconds),
                ratio=median(ratios),
                ratio_min=min(ratios),
                ratio_max=max(ratios),
                floor_share=None if shares is None else median(shares),
                peak_mb=peak / 1e6,
                memory_ratio=ours.peak / peak,
                seconds=seconds,
            )
        )
    return rows


COLUMNS = ("contender", "images/s", "min - max", "ours is faster", "min - max", "of the floor", "MB", "ours of it")


LEGEND = (
    "ours is faster: its time over ours; of the floor: the floor's time over its; ours of it: our peak memory over its"
)
QUICK = "--quick is too small to measure anything: it shows that all of it runs"


def check_rows(asked: Sequence[str], known: Iterable[str]) -> None:
    """Refuse a contender that no case has.

    Raises:
        ValueError: names it, and those there are.
    """
    known = list(dict.fromkeys(known))
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"--rows {unknown[0]!r}: choose from {', '.join(map(repr, known))}")


def rate(images_s: float) -> str:
    """Images a second, to three figures where there are fewer."""
    return f"{images_s:,.0f}" if images_s >= 100 else f"{images_s:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """A row as people read it."""
    return (
        row.contender,
        rate(row.images_s),
        f"{rate(row.images_s_min)} - {rate(row.images_s_max)}",
        f"{row.ratio:.2f} x",
        f"{row.ratio_min:.2f} - {row.ratio_max:.2f}",
        "" if row.floor_share is None else f"{row.floor_share:.0%}",
        f"{row.peak_mb:.0f}",
        f"{row.memory_ratio:.2f}",
    )


def table(title: str, rows: Iterable[Row]) -> Any:
    """Rows for the screen: a rich Table."""
    from rich.table import Table

    found = Table(title=title, title_justify="left", caption=LEGEND, caption_justify="left")
    for i, name in enumerate(COLUMNS):
        found.add_column(name, justify="right" if i else "left")
    for row in rows:
        found.add_row(*cells(row))
    return found


def facts(gpu: str | None = None, **more: Any) -> dict[str, Any]:
    """When, where and with what something was measured.

    Args:
        gpu: the name of the GPU that it was measured on, from `gpu`; the machine is then called after it.
        more: what else there is to say.
    """
    import torch

    where = {"machine": machine()} if gpu is None else {"machine": file_name(gpu), "host": machine()}
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    load = {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}  # before it began
    return {"date": now, "commit": commit(), **where, "torch": torch.__version__, **load, **more}


def machine() -> str:
    """The processor's model and how many cores of it there are, as a file name; no name of a host."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    except OSError:  # not Linux
        pass
    return file_name(f"{model} {os.cpu_count()} cores")


def gpu() -> str:
    """The GPU's model. Another process asks: CUDA is not started in this one, which would hold some of its memory."""
    import torch

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        return other.submit(torch.cuda.get_device_name).result()


def file_name(model: str) -> str:
    """A model's name in small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def commit() -> str:
    """The commit that is measured, with + where files differ from it."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
        return found.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "unmask") else "")


def write_json(file: Path, benchmark: str, about: dict[str, Any], rows: Iterable[Row]) -> None:
    """Append a line for each row."""
    with file.open("a") as lines:
        for row in rows:
            lines.write(json.dumps({"benchmark": benchmark, **about, **asdict(row)}) + "\n")


class Results:
    """A dated table in this machine's file, for `with`.

    Rows are appended as soon as they are there, so that they survive what happens after them; notes at the end.
    """

    def __init__(self, folder: Path | None, title: str, about: dict[str, Any]):
        """Nothing is written before there are rows.

        Args:
            folder: of the results; None: nothing is written at all.
            title: of the table.
            about: from `facts`.
        """
        self.file = None if folder is None else folder / f"{about['machine']}.md"
        self.title, self.about = title, about
        self.notes: list[str] = []
        """what else was measured, a line each"""
        self.begun = False

    def add(self, case: str, rows: Iterable[Row]) -> None:
        """The rows of a case."""
        if not self.begun:
            self._begin()
        self._append(f"| {case} | {' | '.join(cells(row))} |" for row in rows)

    def _begin(self) -> None:
        self.begun, about = True, self.about
        if self.file is not None and not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            model = about["machine"].replace("-", " ")
            self.file.write_text(f"# Measured on {model}\n\nNewest last; see `benchmarks/`.\n")
        said = ", ".join(f"{name} {value}" for name, value in about.items() if name not in {"date", "machine"})
        self._append([f"\n## {about['date']}: {self.title}\n", said, ""])
        self._append([f"| case | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"])

    def _append(self, lines: Iterable[str]) -> None:
        if self.file is not None:
            with self.file.open("a") as existing:
                existing.writelines(f"{line}\n" for line in lines)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *error: object) -> None:
        if self.begun and self.notes:
            self._append(["", *(f"- {note}" for note in self.notes)])
