"""How threads wait for each other, settled before torch is loaded.

Each operation on several threads ends where all of them meet. A thread that sleeps there has to be woken for the next
one, and a step of a small ViT has thousands: on two cores it takes 1.1 to 2.4 times as long as with threads that keep
looking. Those, in turn, hold cores that others need: two trainings on the same cores take 1.4 to 4 times as long as two
that sleep, and 4 to 11 times under libgomp's own 3 ms. Hence they look for some hundredths of a millisecond where cores
are free for them, and sleep at once where not. All of it is in docs/results.md, "Small settings that were tried".

The variables are libgomp's, the OpenMP of torch's Linux builds; others do not read them. A container sees what runs on
its whole machine and does not see its own quota. The command line settles this; a program that imports `unmask` sets
the variables itself, before it imports torch.
"""

import os
import re
import time
from collections.abc import MutableMapping
from pathlib import Path
from statistics import median

LOOKS = 3_000
"""times that a thread looks whether there is work before it sleeps; 10,000 gain 1 to 4 % where nothing else runs, and
cost a third to two thirds beside another training"""
RUNNABLE = Path("/proc/stat")
READINGS, EVERY = 5, 0.01


def settle(environ: MutableMapping[str, str] = os.environ) -> None:
    """Choose how threads wait; what the user has set stays."""
    if "OMP_WAIT_POLICY" in environ or "GOMP_SPINCOUNT" in environ:
        return
    if cores_are_free(_threads(environ)):
        environ["GOMP_SPINCOUNT"] = str(LOOKS)
    else:
        environ["OMP_WAIT_POLICY"] = "PASSIVE"


def cores_are_free(threads: int) -> bool:
    """Whether this many threads find a core each beside what else runs now; false where the system does not tell."""
    readings = []
    for _ in range(READINGS):
        time.sleep(EVERY)
        try:
            running = re.search(r"^procs_running (\d+)$", RUNNABLE.read_text(), re.MULTILINE)
        except OSError:  # not Linux
            return False
        if running is None:
            return False
        readings.append(int(running[1]) - 1)  # this process is one of them
    return threads + median(readings) <= _cores()


def _threads(environ: MutableMapping[str, str]) -> int:
    """The threads that torch will start with."""
    asked = environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdecimal() else _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
