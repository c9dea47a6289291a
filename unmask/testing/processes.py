"""Run a function on several gloo processes of this machine, for tests."""

import multiprocessing
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .. import parallel


def on_processes(function: Callable[..., Any], count: int, *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Call `function(world, *arguments)` on each of `count` CPU processes that form a gloo group.

    Args:
        function: importable by name; what it returns must be picklable.
        timeout: seconds after which all are killed.
    Returns:
        what each rank returned, in the order of ranks.
    Raises:
        RuntimeError: a rank raised; with its traceback. The others are ended.
        TimeoutError: not done in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, count, port, function, arguments, results), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    end, answers = time.monotonic() + timeout, dict[int, Any]()
    try:
        while len(answers) < count:
            try:
                rank, error, value = results.get(timeout=0.2)
            except Exception:  # queue.Empty
                if time.monotonic() > end:
                    raise TimeoutError(f"{count - len(answers)} of {count} ranks not done in {timeout:g} s") from None
                continue
            if error:
                raise RuntimeError(f"rank {rank} of {count}:\n{error}")
            answers[rank] = value
    finally:
        for process in processes:
            process.join(5 if len(answers) == count else 0)
            process.kill()
    return [answers[rank] for rank in range(count)]


def _rank(rank: int, count: int, port: int, function: Callable[..., Any], arguments: tuple, results: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        world = parallel.start("cpu")
        results.put((rank, "", function(world, *arguments)))
        parallel.stop(world)
    except Exception:
        results.put((rank, traceback.format_exc(), None))
