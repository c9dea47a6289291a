"""From positions to batches: what the training loop iterates over.

Every sample of a run has a position, counted through all optimizer steps; sample j of micro-batch m on
rank r at step s is at `s * batch + (m * world + r) * device_batch + j`. The position names the image
(epoch and place in its shuffled order), every view and every mask. So a stream that starts at step s
needs nothing but s, and batches are the same for any number of workers and any split of a batch over
ranks and accumulation.
"""

import ctypes
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..mixing import plan_mixed
from ..randomness import fold, key, shuffled_index
from ..views import Plan, PlanBatch, View, crop, divisor, expand, gray_mean, plan, render, stack, twin
from .decode import decode
from .packed import Packed, Room, Slots, pack, unpack
from .record import BadImage, Source

MaskFunction = Callable[[tuple[int, int], np.random.Generator], np.ndarray]
"""(grid, rng) -> bool [gh gw], True = hidden"""

TRIES = 20
"""substitutes for a bad image before the run gives up"""
_PREFETCH = 2  # micro-batches that each worker has ready


class HostBatch(NamedTuple):
    """One micro-batch on the CPU."""

    crops: tuple[UInt8[Tensor, "B C _ _"], ...]
    """one for each view (a view of count n fills n places), channels last in memory"""
    plans: tuple[PlanBatch, ...]
    """what `views.color` is to do to each, and to its twin"""
    twins: tuple[UInt8[Tensor, "B C _ _"], ...]
    """second renderings, of the views that have a twin"""
    masks: tuple[Bool[Tensor, "B _"], ...]
    """one for each masked view, True = hidden"""
    hidden: tuple[Int64[Tensor, "_"], ...]
    """flat indices of True in B*N, for each mask"""
    label: Int64[Tensor, "B"]
    position: Int64[Tensor, "B"]
    bad: tuple[tuple[str, str], ...]
    """(key, why) of images that could not be read and were substituted"""


_TENSORS = ("crops", "twins", "masks", "hidden", "label", "position")


class Stream:
    """The micro-batches of one rank, optimizer step by optimizer step.

    Args:
        source: the images.
        views: the augmentation policy.
        masks: a function for each of the first views that are masked.
        grids: the patch grid (gh, gw) of each masked view.
        seed: the run's.
        batch: images an optimizer step, over all ranks and micro-batches.
        device_batch: images of a micro-batch of one rank.
        rank, world: this process and how many there are.
        start, steps: first optimizer step, and the one after the last.
        workers: processes that read and crop; 0: this one does.
        channels, value_range: as for `decode`.
        render: render colors here too, by OpenCV, for a device that is a CPU; see `photometry_cpu.does`.
        pin: put batches in page-locked memory, for copying to a GPU without waiting.
    Raises:
        ValueError: the batch does not divide into micro-batches.
    """

    def __init__(
        self,
        source: Source,
        *,
        views: Sequence[View],
        masks: Sequence[MaskFunction] = (),
        grids: Sequence[tuple[int, int]] = (),
        seed: int,
        batch: int,
        device_batch: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        steps: int,
        workers: int = 0,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        render: bool = False,
        pin: bool = False,
    ):
        if batch % (device_batch * world):
            raise ValueError(
                f"batch {batch} does not divide into micro-batches of {device_batch} on {world} "
                f"processes; use a multiple of {device_batch * world}"
            )
        self.start, self.steps, self.pin = start, steps, pin
        self.micro_batches = batch // (device_batch * world)
        self.samples = Samples(source, tuple(views), tuple(masks), tuple(grids), seed, channels, value_range, render)
        self.layout = (batch, device_batch, rank, world)
        self.workers = min(workers, self._workers_that_fit(device_batch)) if pin else workers
        self.notes: list[str] = []
        """what a person should know of it"""
        if self.workers < workers:
            self.notes.append(
                f"/dev/shm has room for the batches of {self.workers} of {workers} workers, so that "
                + (f"{self.workers} read" if self.workers else "the process that trains reads and waits")
                + "; give it more (docker run --shm-size=16g or --ipc=host), or a smaller --device-batch"
            )

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Generator[list[HostBatch], None, None]:
        """Yield the micro-batches of each step. Closing the iterator ends its workers."""
        micro, slots = self.micro_batches, None
        if self.workers and not self.pin:
            held = -(-2 * micro // self.workers)  # of a worker's batches, when the caller holds those of two steps
            slots = Slots(self.workers, _PREFETCH + held, self._bytes(self.layout[1]))
        with warnings.catch_warnings():
            # "more workers than processors" and "fork of a threaded process": asked for, and safe here,
            # as workers use neither the device nor locks of the parent's threads
            warnings.simplefilter("ignore")
            batches = iter(
                DataLoader(
                    _MicroBatches(self.samples, self.layout, micro, slots),
                    batch_size=None,
                    collate_fn=_as_it_is,
                    sampler=range(self.start * micro, self.steps * micro),
                    num_workers=self.workers,
                    prefetch_factor=_PREFETCH if self.workers else None,
                    multiprocessing_context="fork" if self.workers else None,
                    worker_init_fn=_start_worker,
                    pin_memory=self.pin,
                    generator=torch.Generator(),  # else the loader draws its seed from the run's
                )
            )
        try:
            for _ in range(self.start, self.steps):
                yield [unpack(_sound(next(batches)), slots) for _ in range(micro)]
        finally:
            # the traceback of an exception would keep the loader alive until Python exits, which then waits
            # for workers that ignore its SIGTERM: forever
            if self.workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def _workers_that_fit(self, device_batch: int) -> int:
        """How many workers' finished batches /dev/shm holds, by which they go to be pinned: beyond lies a bus error.

        Slots do not lie there, but in memory that has no file.
        """
        if not Path("/dev/shm").is_dir():
            return sys.maxsize
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's: those of this machine share it
        return shutil.disk_usage("/dev/shm").free // (ranks * self._bytes(device_batch) * (_PREFETCH + 1))

    def _bytes(self, device_batch: int) -> int:
        """Of the tensors of a micro-batch at most, when everything is hidden; each ends on a multiple of 8."""
        sides = [view.shape for view in self.samples.views] + [(t, t) for t in self.samples.twin_sizes]
        cells = [gh * gw for gh, gw in self.samples.grids]
        each = [self.samples.channels * h * w for h, w in sides] + cells + [8 * n for n in (*cells, 1, 1)]
        return sum(-(-device_batch * size // 8) * 8 for size in each)


class Samples:
    """A sample as a pure function of its position; arguments as for Stream."""

    def __init__(
        self,
        source: Source,
        views: tuple[View, ...],
        masks: tuple[MaskFunction, ...],
        grids: tuple[tuple[int, int], ...],
        seed: int,
        channels: int,
        value_range: tuple[float, float] | None,
        render: bool = False,
    ):
        self.source, self.masks, self.grids = source, masks, grids
        self.seed, self.channels, self.value_range, self.render = seed, channels, value_range, render
        self.views = expand(views)
        self.twin_sizes = [view.twin for view in self.views if view.twin is not None]
        if len(masks) != len(grids) or len(masks) > len(self.views):
            raise ValueError(f"{len(masks)} masks for {len(grids)} grids and {len(self.views)} views; give one each")

    def image(self, position: int) -> tuple[UInt8[Tensor, "C H W"], list[Plan], int, list[tuple[str, str]]]:
        """Decode the image of a position, or its substitute if it is bad; no larger than its views need it.

        Returns:
            pixels, a plan for each view, the label, and (key, why) of the bad ones met.
        Raises:
            ValueError: a row of TRIES substitutes are bad as well.
        """
        plans: list[Plan] = []

        def draw(size: tuple[int, int]) -> list[Plan]:
            return [plan(view, size, key(self.seed, "view", v, position)) for v, view in enumerate(self.views)]

        def planned(size: tuple[int, int]) -> int:
            plans[:] = draw(size)
            return divisor(plans)

        n = len(self.source)
        epoch, place = divmod(position, n)
        bad: list[tuple[str, str]] = []
        for again in range(1 + TRIES):
            plans.clear()  # those of a bad image
            try:
                record = self.source[shuffled_index(place, n, self.seed, epoch)]
                pixels = decode(record, channels=self.channels, value_range=self.value_range, divisor=planned)
                return pixels, plans or draw((pixels.shape[1], pixels.shape[2])), record.label, bad
            except BadImage as error:
                bad.append((error.key, error.why))
                place = fold(self.seed, "substitute", position, again) % n
        first = "; ".join(f"{name}: {why}" for name, why in bad[:3])
        raise ValueError(f"{self.source.name}: {len(bad)} images in a row cannot be read: {first}")

    def __call__(self, positions: Sequence[int], room: Room | None = None) -> HostBatch:
        """Draw, decode and crop the samples at these positions.

        Args:
            positions: of a micro-batch.
            room: where pixels are to lie; None: in new memory.
        """
        room = room or Room()
        crops = [room.images(len(positions), self.channels, view.shape) for view in self.views]
        twins = [room.images(len(positions), self.channels, (side, side)) for side in self.twin_sizes]
        plans: list[list[Plan]] = [[] for _ in self.views]
        labels, bad = [], []
        for row, position in enumerate(positions):
            image, drawn, label, missed = self.image(position)
            labels.append(label)
            bad += missed
            doubles = iter(twins)
            mean = gray_mean(image) if any(view.jitter_before_crop for view in self.views) else -1.0
            for v, (view, one) in enumerate(zip(self.views, drawn, strict=True)):
                one = one._replace(gray_mean=mean) if view.jitter_before_crop else one
                plans[v].append(one)
                self._put(crop(image, one), one, crops[v][row])
                if view.twin is not None:
                    self._put(twin(image, one), one, next(doubles)[row])
        masks = [
            np.stack([policy(grid, key(self.seed, "mask", v, p)).reshape(-1) for p in positions])
            for v, (policy, grid) in enumerate(zip(self.masks, self.grids, strict=True))
        ]
        mixed = [plan_mixed(view.mix, view.shape, self.seed, v, positions) for v, view in enumerate(self.views)]
        return HostBatch(
            crops=tuple(crops),
            plans=tuple(stack(p, m, self.render) for p, m in zip(plans, mixed, strict=True)),
            twins=tuple(twins),
            masks=tuple(torch.from_numpy(mask) for mask in masks),
            hidden=tuple(torch.from_numpy(np.flatnonzero(mask)) for mask in masks),
            label=torch.tensor(labels, dtype=torch.int64),
            position=torch.tensor(positions, dtype=torch.int64),
            bad=tuple(bad),
        )

    def _put(self, image: UInt8[Tensor, "C h w"], plan: Plan, place: UInt8[Tensor, "C h w"]) -> None:
        """Write an image to its place in the batch, rendered if that is asked for."""
        if self.render:
            render(image, plan, place)
        else:
            place.copy_(image)


class _MicroBatches(Dataset):
    """Micro-batch k of this rank: k counts through all steps of the run."""

    def __init__(self, samples: Samples, layout: tuple[int, int, int, int], micro: int, slots: Slots | None):
        self.samples, self.layout, self.micro, self.slots = samples, layout, micro, slots

    def __getitem__(self, k: int) -> Packed | Exception:
        batch, device_batch, rank, world = self.layout
        step, m = divmod(k, self.micro)
        first = step * batch + (m * world + rank) * device_batch
        room = Room(self.slots)
        try:
            return pack(self.samples(range(first, first + device_batch), room), _TENSORS, room)
        except (ValueError, OSError) as error:  # as it is: the loader would wrap it in a traceback
            room.leave()
            return error


def _as_it_is(item: Any) -> Any:
    return item


def _sound(item: Packed | Exception) -> Packed:
    if isinstance(item, Exception):
        raise item
    return item


def _start_worker(_: int) -> None:
    """Leave signals to the parent, which saves and then ends its workers; and die with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # schedulers signal the whole group
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: even if the parent is killed
