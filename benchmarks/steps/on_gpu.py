"""A contender's turn on a GPU: some steps in a row, and at its end no more memory than it keeps between them.

The host queues a step long before the GPU has done it. A single step between two waits would thus count its first
launches, and not what `unmask` leaves out: waits inside of a step. Contenders live at the same time; each gives the
memory of its activations back after its turn, so that the GPU holds the weights of all, but the activations of one.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from race import Took, Turn

from .cases import Case

WARM, COUNTED = 1, 4
"""steps of a turn: those that ask for memory again, and those that count"""


def make(make_step: Callable[..., Turn], case: Case, *arguments: Any) -> Turn:
    """Turns of a contender's steps.

    Args:
        make_step: the contender's own `make`.
        case: on a GPU.
        arguments: what else `make_step` wants to know.
    """
    step = make_step(case, *arguments)
    if any(str(argument).startswith("compiled") for argument in arguments):
        step()  # compiles, before anyone is measured
    torch.cuda.empty_cache()

    def turn() -> Took:
        try:
            for _ in range(WARM):
                step()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(COUNTED):
                step()
            torch.cuda.synchronize()
            took = time.perf_counter() - begin
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"{case.name} does not fit at {case.images} images beside the weights of all other contenders; give "
                f"fewer --images, or name fewer contenders by --rows ({error})"
            ) from error
        torch.cuda.empty_cache()
        return Took(took / COUNTED)

    return turn


def peak_memory() -> int:
    """The most bytes that this process's tensors have held on the GPU."""
    return torch.cuda.max_memory_allocated()
