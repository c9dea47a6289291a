"""What the benchmarks share, first part: contenders that take turns.

Each contender is a process of its own, so that its peak memory is its own. The parent asks one after the
other for one turn, round after round, and throws round 0 away: whatever else the machine does then falls on
all alike. Ratios are taken within a round and only then their median; absolute numbers of a shared machine
drift by a quarter, ratios do not. A difference under a tenth says nothing before six rounds. The processes are
forked from one that has imported torch and not touched a GPU: each contender starts CUDA for itself.

    timings, left_out = race([Contender("ours", make, (arguments,)), ...], rounds=6, threads=2)

`tables.py` says what came of it.
"""

import contextlib
import fcntl
import multiprocessing
import os
import platform
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
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
    """bytes of memory its process held at most: with imports, or on a GPU its tensors"""


def peak_memory() -> int:
    """The most bytes this process has held in memory so far."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
    except OSError:  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def race(
    contenders: Sequence[Contender],
    rounds: int,
    threads: int,
    preload: Sequence[str] = ("torch",),
    peak: Callable[[], int] = peak_memory,
    lock: str | None = None,
) -> tuple[list[Timing], dict[str, str]]:
    """Let contenders take turns.

    Args:
        contenders: at least one.
        rounds: that count; one more goes before them.
        threads: of each contender.
        preload: modules that all of them import: done once, as the processes are forked after it.
        peak: an importable function that tells a contender's process the most bytes it has held.
        lock: a file; rounds begin when no other race with the same one is in its own.
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
        processes.append(context.Process(target=_work, args=(there, threads, peak, *contender[1:])))
        processes[-1].start()
        there.close()
    try:
        return _take_turns(pipes, rounds, lock)
    except BaseException:  # they are no daemons, which may have no children (loaders' workers), and would wait
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()


def _take_turns(pipes: dict[str, Connection], rounds: int, lock: str | None) -> tuple[list[Timing], dict[str, str]]:
    answers = {name: _answer(name, pipe) for name, pipe in pipes.items()}
    left_out = {name: why for name, why in answers.items() if why is not None}
    running = {name: pipe for name, pipe in pipes.items() if name not in left_out}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    with _alone(lock):
        for turn in range(rounds + 1):
            for name, pipe in running.items():
                took = _ask(name, pipe, True)
                print(f"round {turn} of {rounds}: {name} {took:.3g} s", file=sys.stderr, flush=True)
                if turn:
                    seconds[name].append(took)
    return [Timing(name, seconds[name], _ask(name, pipe, False)) for name, pipe in running.items()], left_out


@contextlib.contextmanager
def _alone(lock: str | None) -> Iterator[None]:
    if lock is None:
        yield
        return
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _work(
    pipe: Connection, threads: int, peak: Callable[[], int], make: Callable[..., Turn], arguments: tuple[Any, ...]
) -> None:
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
        pipe.send(peak())
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
