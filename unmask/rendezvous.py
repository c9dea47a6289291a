"""How the processes of a start find each other, and only each other.

torchrun keeps one key-value store through all restarts, and process groups write the addresses of
their processes into it under names that every start repeats (pytorch issue 135712). A process of a
second start that is quicker than its peer then reads the address of a dead one: it is refused, or it
is let in by whoever has that port now and waits for ever. Counting starts does not help: each machine
counts those that it caused itself. So the processes agree on a name that no start had before, and
the group's addresses live below it.
"""

import json
import time
import uuid
from datetime import timedelta

from torch.distributed import Store

PAUSE = 0.05
"""seconds between two looks at the store"""


def meet(store: Store, rank: int, size: int, patience: timedelta) -> str:
    """Agree on a name for this start, whatever earlier starts left in the store.

    Every process says hello with a word of its own; the first one proposes a name together with all
    the words that it read; a process accepts the proposal that has its word; when all have accepted
    one name, the first says go. Whatever is left of an earlier start is answered by no process of
    this one, and is replaced when the process that it stands for arrives.

    Args:
        store: that all processes of this start, and perhaps of earlier ones, share.
        rank: of this process, 0 <= rank < size.
        patience: how long to wait for all.
    Returns:
        the name, the same on all ranks and on no earlier start.
    Raises:
        TimeoutError: names the ranks that did not come.
    """
    word = uuid.uuid4().hex
    store.set(f"hello/{rank}", word)
    proposal: dict[str, list[str]] = {}
    words: list[str] = []
    end = time.monotonic() + patience.total_seconds()
    while True:
        if rank == 0:
            now = [_read(store, f"hello/{r}") for r in range(size)]
            if now != words:
                words = now
                store.set("proposal", json.dumps({uuid.uuid4().hex: words}))
        proposal = json.loads(_read(store, "proposal") or "{}")
        for name, heard in proposal.items():
            if len(heard) != size or heard[rank] != word:
                continue
            store.set(f"accepted/{rank}", name)
            if rank == 0 and all(_read(store, f"accepted/{r}") == name for r in range(size)):
                store.set("go", name)
            if _read(store, "go") == name:
                return name
        if time.monotonic() > end:
            raise TimeoutError(_missing(store, rank, size, proposal, patience))
        time.sleep(PAUSE)


def _read(store: Store, key: str) -> str:
    """The value of a key, or nothing; a store's own get would wait for it."""
    return store.get(key).decode() if store.check([key]) else ""


def _missing(store: Store, rank: int, size: int, proposal: dict[str, list[str]], patience: timedelta) -> str:
    name = next(iter(proposal), "")
    absent = [r for r in range(size) if r != rank and (not name or _read(store, f"accepted/{r}") != name)]
    return (
        f"rank {rank} waited {patience.total_seconds():g} s for {size} processes, and did not meet rank "
        f"{', '.join(map(str, absent[:8])) or '0'}{' ...' if len(absent) > 8 else ''}; see what they said, and whether "
        f"all machines reach the first one's MASTER_ADDR and MASTER_PORT"
    )
