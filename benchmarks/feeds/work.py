"""What every contender is to do with the same files, and on how many cores."""

import multiprocessing
import os
import time
from dataclasses import dataclass, replace

from race import Took

from unmask.methods.ibot import GLOBAL_1, GLOBAL_2, LOCAL
from unmask.views import View

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICIES: dict[str, tuple[View, ...]] = {
    "crop": (View(224, scale=(0.2, 1.0)),),  # MAE's
    "views": (GLOBAL_1, GLOBAL_2, replace(LOCAL, count=8)),  # iBOT ViT-S's scales, DINO's number
}


@dataclass(frozen=True)
class Work:
    """One turn."""

    policy: str
    """a key of POLICIES"""
    images: int
    """that become batches"""
    batch: int
    workers: int
    """processes that read, on as many cores"""
    decoded: bool = False
    """images are decoded before the clock starts"""

    @property
    def views(self) -> tuple[View, ...]:
        return POLICIES[self.policy]


def pin(workers: int) -> None:
    """Keep this process, and the workers it will start, on as many cores as there are workers.

    Otherwise whoever colors in the parent process would have a core more than whoever colors in workers.
    """
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])


class Gate:
    """Where workers wait for each other before their first image of a turn: starting them is not timed.

    A run starts its workers once; under load that takes as long as hundreds of images.
    """

    def __init__(self, workers: int):
        context = multiprocessing.get_context("fork")
        self.others, self.opened = context.Barrier(workers), context.Value("d", 0.0)
        self.inside = False  # of this process: workers are forked anew in each turn

    def enter(self) -> None:
        """To be called before each image, by workers."""
        if not self.inside:
            self.others.wait()
            self.inside = True
            self.opened.value = time.monotonic()  # one clock for all processes

    def since(self) -> Took:
        """Seconds since the gate opened; to be taken when the last batch is there: ending workers is not timed."""
        return Took(time.monotonic() - self.opened.value)
