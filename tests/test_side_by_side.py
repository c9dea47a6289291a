"""Calls side by side: all of them, on any number of threads, also in a forked process."""

import multiprocessing
import threading

import pytest
import torch

from unmask.methods.relaxation import gumbel
from unmask.side_by_side import side_by_side


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
def test_every_call_is_made_once(threads, count):
    threads(count)
    found = [0] * 50
    side_by_side(lambda i, value: found.__setitem__(i, found[i] + value), range(50), range(50))
    assert found == list(range(50))


def test_as_many_calls_are_under_way_as_there_are_threads(threads):
    threads(3)
    together = threading.Barrier(3, timeout=20)  # fewer would wait in vain
    side_by_side(lambda _: together.wait(), range(3))


def test_an_error_in_a_call_is_the_callers(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda i: 1 / i, (1, 0, 2))


def test_noise_is_the_same_on_any_number_of_threads(threads):
    drawn = []
    for count in (1, 2, 5):
        threads(count)
        torch.manual_seed(0)
        drawn.append(gumbel(torch.empty(3, 1 << 18)))
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert abs(drawn[0].mean().item() - 0.5772) < 0.01  # Euler's constant


def _in_a_child(queue):
    torch.set_num_threads(2)
    side_by_side(queue.put, range(4))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    side_by_side(lambda _: None, range(4))  # the pool is there before the fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue,), daemon=True)
    child.start()
    assert sorted(queue.get(timeout=60) for _ in range(4)) == [0, 1, 2, 3]
    child.join(60)
    assert child.exitcode == 0
