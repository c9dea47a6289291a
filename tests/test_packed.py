"""Batches that are made where they are sent."""

import gc
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from unmask.data import packed
from unmask.data.packed import Room, Slots, pack, unpack


class Batch(NamedTuple):
    images: Tensor
    numbers: Tensor


@pytest.fixture
def slots(monkeypatch) -> Slots:
    """One slot of a page, in whose worker this process is."""
    monkeypatch.setattr(packed, "get_worker_info", lambda: SimpleNamespace(id=0))
    return Slots(1, 1, 4096)


def made(room: Room, numbers: int) -> Batch:
    images = room.images(3, 3, (8, 8))
    images.copy_(torch.arange(images.numel()).view(images.shape) % 256)
    return Batch(images, torch.arange(numbers))


def test_images_that_are_made_in_a_slot_are_sent_as_they_lie(slots):
    room = Room(slots)
    batch = made(room, 10)
    sent = pack(batch, Batch._fields, room)
    assert sent.block == 0
    batch.images[:, 0] = 9  # had they been copied, what was sent would stay as it was
    got = unpack(sent, slots)
    assert all(torch.equal(a, b) for a, b in zip(got, batch, strict=True)) and got.images[0, 0, 0, 0] == 9
    del got
    gc.collect()
    assert not slots.taken.any()


def test_a_batch_that_outgrows_its_slot_is_sent_in_new_memory(slots):
    room = Room(slots)
    batch = made(room, 1000)
    sent = pack(batch, Batch._fields, room)
    assert isinstance(sent.block, Tensor) and not slots.taken.any()
    assert all(torch.equal(a, b) for a, b in zip(unpack(sent, slots), batch, strict=True))


def test_where_all_slots_are_taken_and_where_there_are_none_memory_is_new(slots):
    first, second, third = Room(slots), Room(slots), Room()
    for room in (second, third):
        batch = made(room, 10)
        sent = pack(batch, Batch._fields, room)
        assert isinstance(sent.block, Tensor)
        assert all(torch.equal(a, b) for a, b in zip(unpack(sent, slots), batch, strict=True))
    assert slots.taken.all()
    first.leave()
    assert not slots.taken.any()
