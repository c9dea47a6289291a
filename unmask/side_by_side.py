"""Work on the threads that torch has, for what it does on one."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch


def side_by_side(function: Callable[..., Any], *arguments: Iterable[Any]) -> None:
    """Call a function for each of some arguments, `torch.get_num_threads()` calls at a time.

    It should spend its time where Python's lock is free, as in torch, and what it gives must not depend on the
    order of the calls.
    """
    threads = torch.get_num_threads()
    for _ in map(function, *arguments) if threads == 1 else _pool(threads).map(function, *arguments):
        pass


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "unmask")


if hasattr(os, "register_at_fork"):  # a forked process has the pool and not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
