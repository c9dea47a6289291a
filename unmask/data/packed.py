"""A batch's way from a worker to the process that trains: all its tensors in one block of shared memory.

The blocks are used again and again: new shared memory costs more than what is written to it, as the system clears
and maps it page by page.
"""

import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

Part = tuple[torch.dtype, tuple[int, ...], int, bool]
"""of a tensor in a block: dtype, shape in memory, offset, whether channels lie last"""


class Slots:
    """Blocks that forked workers write and their parent reads; made before the fork.

    A worker takes one of its own slots that no batch lies in. It is free again once the parent has dropped the last
    tensor of that batch, however long that takes: a worker that finds no slot takes new memory.

    Args:
        workers, each: how many workers, and slots of each.
        size: bytes of a slot.
    """

    def __init__(self, workers: int, each: int, size: int):
        self.each, self.size = each, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, workers * each * self.size)  # no page of it exists before it is written
        self.taken = np.frombuffer(mmap.mmap(-1, workers * each), np.uint8)

    def take(self) -> int | None:
        """In a worker: a free slot, from now on taken; None: there is none."""
        worker = get_worker_info()
        if worker is None:
            return None
        for slot in range(worker.id * self.each, (worker.id + 1) * self.each):
            if not self.taken[slot]:
                self.taken[slot] = 1
                return slot
        return None

    def lend(self, slot: int, size: int) -> UInt8[Tensor, "_"]:
        """In the parent: what lies in a slot, which is free again when no tensor shares its memory."""
        block = np.frombuffer(self.memory, np.uint8, size, slot * self.size)
        weakref.finalize(block, self._free, slot, os.getpid()).atexit = False
        return torch.from_numpy(block)

    def _free(self, slot: int, parent: int) -> None:
        if os.getpid() == parent:  # another child that was forked meanwhile drops its copy, not the batch
            self.taken[slot] = 0

    def block(self, slot: int) -> UInt8[Tensor, "_"]:
        """In the worker that took it: a slot's memory."""
        return torch.from_numpy(np.frombuffer(self.memory, np.uint8, self.size, slot * self.size))


class Room:
    """Memory that a batch is made in: a slot, where one is free, so that nothing need be copied there later.

    Args:
        slots: of the workers, or None.
        size: bytes of new memory, where there is no slot.
    """

    def __init__(self, slots: Slots | None = None, size: int = 0):
        self.slots, self.slot, self.used = slots, slots.take() if slots else None, 0
        if slots is None or self.slot is None:
            self.block = torch.empty(size, dtype=torch.uint8)
        else:
            self.block = slots.block(self.slot)

    def images(self, n: int, channels: int, shape: tuple[int, int]) -> UInt8[Tensor, "n C h w"]:
        """Memory for n images, channels last: here, if it fits in."""
        part = (torch.uint8, (n, *shape, channels), self.used, True)
        size = n * channels * shape[0] * shape[1]
        if not self.fits(size):
            return torch.empty(part[1], dtype=torch.uint8).permute(0, 3, 1, 2)
        self.used += _padded(size)
        return _tensor(self.block, part)

    def fits(self, size: int) -> bool:
        """Whether so many bytes more fit in."""
        return self.used + _padded(size) <= len(self.block)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies here."""
        return 0 <= tensor.data_ptr() - self.block.data_ptr() < len(self.block)

    def bring(self, tensor: Tensor) -> Part:
        """Copy a tensor into this memory, if it does not lie there."""
        last = tensor.ndim == 4
        shape = tuple(tensor.permute(0, 2, 3, 1).shape if last else tensor.shape)
        if self.holds(tensor):
            return tensor.dtype, shape, tensor.data_ptr() - self.block.data_ptr(), last
        part = (tensor.dtype, shape, self.used, last)
        _tensor(self.block, part).copy_(tensor)
        self.used += _padded(tensor.nbytes)
        return part

    def leave(self) -> None:
        """Give the slot back: no batch is sent in it."""
        if self.slots is not None and self.slot is not None:
            self.slots.taken[self.slot] = 0
        self.slot = None


@dataclass
class Packed:
    """A NamedTuple whose tensors lie in one: a single block of shared memory, and of pinned memory."""

    block: UInt8[Tensor, "_"] | int
    """or the number of its slot"""
    size: int
    """bytes of the block"""
    parts: list[Part]
    batch: Any
    """with numbers of parts in the places of tensors"""
    names: Sequence[str]
    """its fields that hold tensors"""

    def pin_memory(self) -> "Packed":
        """What the loader's pinning thread calls; a stream that pins has no slots."""
        assert isinstance(self.block, Tensor)
        return replace(self, block=self.block.pin_memory())


def pack(batch: Any, names: Sequence[str], room: Room) -> Packed:
    """Bring the tensors of the fields `names`, one or a tuple each, into one block: the room's, if they fit in."""
    tensors: list[Tensor] = []
    numbered = batch._replace(**{name: _put(getattr(batch, name), tensors) for name in names})
    if not room.fits(sum(_padded(tensor.nbytes) for tensor in tensors if not room.holds(tensor))):
        room.leave()  # this process alone writes there, and not before the next batch
        room = Room(size=sum(_padded(tensor.nbytes) for tensor in tensors))
    parts = [room.bring(tensor) for tensor in tensors]
    return Packed(room.block if room.slot is None else room.slot, room.used, parts, numbered, names)


def unpack(packed: Packed, slots: Slots | None) -> Any:
    """The batch that was packed; its tensors share the block."""
    block = packed.block
    if isinstance(block, int):
        assert slots is not None  # there was a slot
        block = slots.lend(block, packed.size)
    tensors = [_tensor(block, part) for part in packed.parts]
    return packed.batch._replace(**{name: _get(getattr(packed.batch, name), tensors) for name in packed.names})


def _padded(size: int) -> int:
    return -(-size // 8) * 8  # int64 must lie on a multiple of 8


# not functions inside those that use them: one that calls itself is a cycle, which would hold a batch's memory until
# Python's collector comes


def _put(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(_put(item, tensors) for item in value)
    tensors.append(value)
    return len(tensors) - 1


def _get(value: Any, tensors: list[Tensor]) -> Any:
    return tuple(_get(item, tensors) for item in value) if isinstance(value, tuple) else tensors[value]


def _tensor(block: Tensor, part: Part) -> Tensor:
    dtype, shape, offset, last = part
    size = int(np.prod(shape)) * dtype.itemsize
    tensor = block[offset : offset + size].view(dtype).view(shape)
    return tensor.permute(0, 3, 1, 2) if last else tensor
