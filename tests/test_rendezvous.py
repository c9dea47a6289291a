"""Processes of one start meet each other, not what an earlier start left in torchrun's store."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, PrefixStore

from unmask.rendezvous import meet

SOON = timedelta(seconds=20)


def meeting(store, size, late=()):
    """The names that threads, as ranks, agree on; those in `late` come half a second after the others."""

    def arrive(rank):
        time.sleep(0.5 if rank in late else 0)
        return meet(store, rank, size, SOON)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(arrive, range(size)))


@pytest.mark.parametrize("late", [(0,), (1,), (1, 2)])
def test_a_second_start_agrees_on_a_name_of_its_own_whoever_is_late(late):
    store = HashStore()
    first, second = meeting(store, 3), meeting(store, 3, late)
    assert len(set(first)) == len(set(second)) == 1
    assert first != second


def test_a_start_with_fewer_processes_is_not_the_one_before_it():
    store = HashStore()
    first, second = meeting(store, 3), meeting(store, 2, late=(0,))
    assert len(set(second)) == 1
    assert second[0] not in first


def test_an_address_of_the_start_before_is_not_seen():
    store = HashStore()
    (before, _), (now, _) = meeting(store, 2), meeting(store, 2)
    PrefixStore(before, store).set("rank_0", "dead")
    assert not PrefixStore(now, store).check(["rank_0"])


@pytest.mark.parametrize("stale", [False, True])
def test_who_did_not_come_is_named_in_time(stale):
    store = HashStore()
    if stale:
        meeting(store, 3)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(meet, store, rank, 3, timedelta(seconds=0.5)) for rank in (0, 2)]
        for call in calls:
            with pytest.raises(TimeoutError, match=re.escape("for 3 processes, and did not meet rank 1")):
                call.result(timeout=10)
