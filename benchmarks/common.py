"""What the benchmarks share: contenders that take turns, what came of it, and where that is written.

Each contender is a process of its own, so that its peak memory is its own. The parent asks one after the
other for one turn, round after round, and throws round 0 away: whatever else the machine does then falls on
all alike. Ratios are taken within a round and only then their median; absolute numbers of a shared machine
drift by a quarter, ratios do not. A difference under a tenth says nothing before six rounds.

    timings, left_out = race([Contender("ours", make, (arguments,)), ...], rounds=6, threads=2)
    rows = compare(timings, reference="ours", floor="floor", images=32)
    console.print(table(title, rows)); append_results(folder, title, facts, rows); write_json(file, ...)
"""

import contextlib
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from unmask import waiting

Turn = Callable[[], object]
"""what is timed: one step, one batch"""


class Took(float):
    """What a turn returns if it knows better than a clock around it: the seconds that count."""


class Absent(Exception):
    """Raised by a contender's `make` where what it needs is not here; the message says what to do."""


class Contender(NamedTuple):
    """Something to time."""

    name: str
    make: Callable[..., Turn]
    """an importable function, called once in the contender's own process"""
    arguments: tuple[Any, ...] = ()


class Timing(NamedTuple):
    """What one contender took."""

    name: str
    seconds: list[float]
    """of each round"""
    peak: int
    """bytes of memory its process held at most, imports included"""


def race(
    contenders: Sequence[Contender], rounds: int, threads: int, preload: Sequence[str] = ("torch",)
) -> tuple[list[Timing], dict[str, str]]:
    """Let contenders take turns.

    Args:
        contenders: at least one.
        rounds: that count; one more goes before them.
        threads: of each contender.
        preload: modules that all of them import: done once, as the processes are forked after it.
    Returns:
        timings in the given order, and why the others were left out, by name.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    if "OMP_WAIT_POLICY" not in os.environ:  # likewise; as `unmask` does on a quiet machine, for all contenders
        os.environ.setdefault("GOMP_SPINCOUNT", str(waiting.LOOKS))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    pipes: dict[str, Connection] = {}
    processes = []
    for contender in contenders:
        pipes[contender.name], there = context.Pipe()
        processes.append(context.Process(target=_work, args=(there, threads, *contender[1:])))
        processes[-1].start()
        there.close()
    try:
        return _take_turns(pipes, rounds)
    except BaseException:  # they are no daemons, which may have no children (loaders' workers), and would wait
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()


def _take_turns(pipes: dict[str, Connection], rounds: int) -> tuple[list[Timing], dict[str, str]]:
    answers = {name: _answer(name, pipe) for name, pipe in pipes.items()}
    left_out = {name: why for name, why in answers.items() if why is not None}
    running = {name: pipe for name, pipe in pipes.items() if name not in left_out}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(rounds + 1):
        for name, pipe in running.items():
            took = _ask(name, pipe, True)
            if turn:
                seconds[name].append(took)
    return [Timing(name, seconds[name], _ask(name, pipe, False)) for name, pipe in running.items()], left_out


def _work(pipe: Connection, threads: int, make: Callable[..., Turn], arguments: tuple[Any, ...]) -> None:
    """A contender's process: make it ready, then a turn whenever asked."""
    warnings.simplefilter("ignore")  # what is deprecated in a contender is not ours to mend
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    try:
        turn = make(*arguments)
        pipe.send(None)
        while pipe.recv():
            start = time.perf_counter()
            result = turn()
            took = time.perf_counter() - start
            pipe.send(float(result) if isinstance(result, Took) else took)
        pipe.send(peak_memory())
    except Absent as why:
        pipe.send(str(why))
    except Exception:
        pipe.send(RuntimeError(traceback.format_exc()))


def _ask(name: str, pipe: Connection, more: bool) -> Any:
    with contextlib.suppress(BrokenPipeError):  # its last words tell
        pipe.send(more)
    return _answer(name, pipe)


def _answer(name: str, pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise RuntimeError(
            f"{name} was ended by the system; is there memory for all contenders at once? Name fewer"
        ) from None
    if isinstance(answer, RuntimeError):
        raise RuntimeError(f"{name} failed:\n{answer}")
    return answer


def peak_memory() -> int:
    """The most bytes this process has held in memory so far."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
    except OSError:  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


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


def compare(timings: Sequence[Timing], reference: str, images: int, floor: str | None = None) -> list[Row]:
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


# --- what is said and written ------------------------------------------------------------------------

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


def facts(**more: Any) -> dict[str, Any]:
    """When, where and with what something was measured."""
    import torch

    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    load = {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}  # before it began
    return {"date": now, "commit": commit(), "machine": machine(), "torch": torch.__version__, **load, **more}


def machine() -> str:
    """The processor's model and how many cores of it there are, as a file name; no name of a host."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    except OSError:  # not Linux
        pass
    return re.sub(r"[^a-z0-9]+", "-", f"{model} {os.cpu_count()} cores".lower()).strip("-")


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


def append_results(
    folder: Path, title: str, about: dict[str, Any], tables: dict[str, list[Row]], notes: Sequence[str] = ()
) -> Path:
    """Append a dated set of tables to this machine's file.

    Args:
        folder: of the results.
        title: of the set.
        about: from `facts`.
        tables: rows by case.
        notes: what else was measured, a line each.
    Returns:
        the file.
    """
    file = folder / f"{about['machine']}.md"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(f"# Measured on {about['machine'].replace('-', ' ')}\n\nNewest last; see `benchmarks/`.\n")
    said = ", ".join(f"{name} {value}" for name, value in about.items() if name not in {"date", "machine"})
    lines = [f"\n## {about['date']}: {title}\n", said, ""]
    lines += [f"| case | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    lines += [f"| {case} | {' | '.join(cells(row))} |" for case, rows in tables.items() for row in rows]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    with file.open("a") as existing:
        existing.write("\n".join(lines) + "\n")
    return file
