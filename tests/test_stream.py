"""The stream: the same batches for any number of workers and any split, and workers that end."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.data.record import BadImage, Record
from unmask.data.stream import Samples, Stream
from unmask.randomness import key, shuffled_index
from unmask.views import Blur, Jitter, View, color, crop, plan


class Noise:
    """A source of 23 noisy pictures, some of which may be bad."""

    name, classes = "noise", None

    def __init__(self, bad=(), n=23):
        self.bad, self.n, self.labels = set(bad), n, np.arange(n)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i in self.bad:
            raise BadImage(f"noise-{i}", "broken on purpose")
        return Record(key(0, "noise", i).integers(0, 256, (20, 26, 3), dtype=np.uint8), i, f"noise-{i}")


def half(grid, rng):
    return rng.random(grid) < 0.5


VIEWS = (View(16, jitter=Jitter(), blur=Blur(), twin=8), View(8, scale=(0.05, 0.3), count=2))
SETTINGS = {"views": VIEWS, "masks": (half, half), "grids": ((4, 4), (2, 2)), "seed": 3, "batch": 8}


def parts(batch):
    """Every tensor and array of a batch, flat."""
    yield from (*batch.crops, *batch.twins, *batch.masks, *batch.hidden, batch.label, batch.position)
    for plans in batch.plans:
        yield from map(torch.as_tensor, (plans.factors, plans.steps, *plans.rows))


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def test_a_batch_has_the_promised_parts():
    steps = list(Stream(Noise(), **SETTINGS, device_batch=4, steps=3))
    assert [len(step) for step in steps] == [2, 2, 2]
    batch = steps[1][1]
    assert [tuple(c.shape) for c in batch.crops] == [(4, 3, 16, 16), (4, 3, 8, 8), (4, 3, 8, 8)]
    assert [tuple(t.shape) for t in batch.twins] == [(4, 3, 8, 8)]
    assert [tuple(m.shape) for m in batch.masks] == [(4, 16), (4, 4)]
    assert batch.masks[0].dtype == torch.bool
    assert all(torch.equal(h, m.flatten().nonzero()[:, 0]) for h, m in zip(batch.hidden, batch.masks, strict=True))
    assert batch.position.tolist() == [12, 13, 14, 15]
    assert batch.bad == ()
    assert batch.crops[0].dtype == torch.uint8
    assert batch.crops[0].is_contiguous(memory_format=torch.channels_last)


def test_a_sample_can_be_drawn_again_alone_from_its_position():
    batch = list(Stream(Noise(), **SETTINGS, device_batch=8, steps=4))[3][0]
    position = 30  # epoch 1, place 7
    index = shuffled_index(7, 23, 3, 1)
    image = torch.from_numpy(Noise()[index].data).permute(2, 0, 1)
    drawn = plan(VIEWS[1], (20, 26), key(3, "view", 2, position))
    assert batch.position[6] == position
    assert batch.label[6] == index
    assert torch.equal(batch.crops[2][6], crop(image, drawn))
    assert np.array_equal(batch.masks[1][6], half((2, 2), key(3, "mask", 1, position)).ravel())


@pytest.mark.parametrize("workers", [0, 2])
def test_colors_that_the_stream_renders_are_those_that_color_renders(workers):
    pytest.importorskip("cv2", reason="colors are rendered by OpenCV")
    before = dataclasses.replace(VIEWS[0], jitter_before_crop=True, gray=0.3, solarize=0.3)
    settings = SETTINGS | {"views": (before, VIEWS[1]), "device_batch": 4, "steps": 4}
    left, done = (list(Stream(Noise(), **settings, render=r, workers=workers)) for r in (False, True))
    for step, other in zip(left, done, strict=True):
        for a, b in zip(step, other, strict=True):
            assert not any(plans.steps for plans in b.plans)
            for v in range(3):
                assert torch.equal(*(color(h.crops[v], h.plans[v], (0.5,) * 3, (0.2,) * 3) for h in (a, b)))
            assert torch.equal(*(color(h.twins[0], h.plans[0], (0.0,) * 3, (1.0,) * 3) for h in (a, b)))


def test_a_slot_is_as_large_as_a_batch_can_be():
    def everything(grid, rng):
        return np.ones(grid, bool)

    stream = Stream(Noise(), **SETTINGS | {"masks": (everything, half)}, device_batch=8, steps=1)
    batch = stream.samples(range(8))
    sizes = [t.nbytes for t in (*batch.crops, *batch.twins, *batch.masks, *batch.hidden, batch.label, batch.position)]
    shown = 8 * int((~batch.masks[1]).sum())
    assert shown > 0 and sum(sizes) == stream._bytes(8) - shown  # all of them multiples of 8


def test_every_epoch_shows_every_image_once_in_another_order():
    labels = [b.label for step in Stream(Noise(n=16), **SETTINGS, device_batch=8, steps=4) for b in step]
    first, second = torch.cat(labels[:2]), torch.cat(labels[2:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(16))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    alone = list(Stream(Noise(), **SETTINGS, device_batch=4, steps=4))
    helped = list(Stream(Noise(), **SETTINGS, device_batch=4, steps=4, workers=workers))
    assert all(same(a, b) for x, y in zip(alone, helped, strict=True) for a, b in zip(x, y, strict=True))


def test_a_stream_that_starts_later_continues_the_same_run():
    whole = list(Stream(Noise(), **SETTINGS, device_batch=8, steps=5))
    later = list(Stream(Noise(), **SETTINGS, device_batch=8, start=3, steps=5, workers=1))
    assert len(later) == 2
    assert all(same(a[0], b[0]) for a, b in zip(whole[3:], later, strict=True))


@pytest.mark.parametrize(("world", "device_batch"), [(1, 2), (2, 4), (4, 2), (2, 2), (8, 1)])
def test_any_split_over_ranks_and_accumulation_covers_the_same_batch(world, device_batch):
    whole = list(Stream(Noise(), **SETTINGS, device_batch=8, steps=3))
    ranks = [
        list(Stream(Noise(), **SETTINGS, device_batch=device_batch, rank=rank, world=world, steps=3))
        for rank in range(world)
    ]
    for step, (expected,) in enumerate(whole):
        micro = [ranks[rank][step][m] for m in range(8 // (world * device_batch)) for rank in range(world)]
        for name in ("crops", "twins", "masks"):
            for v, tensor in enumerate(getattr(expected, name)):
                assert torch.equal(torch.cat([getattr(b, name)[v] for b in micro]), tensor)
        assert torch.equal(torch.cat([b.position for b in micro]), expected.position)
        assert np.array_equal(np.concatenate([b.plans[0].factors for b in micro]), expected.plans[0].factors)


def test_a_batch_that_does_not_divide_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"batch 8 does not divide .* use a multiple of 6"):
        Stream(Noise(), **SETTINGS, device_batch=3, world=2, steps=1)
    with pytest.raises(ValueError, match=r"1 masks for 2 grids"):
        Stream(Noise(), **(SETTINGS | {"masks": (half,)}), device_batch=8, steps=1)


def test_bad_images_are_replaced_by_good_ones_and_reported():
    runs = [
        [b for step in Stream(Noise(bad={2, 5, 11}), **SETTINGS, device_batch=4, steps=6, workers=w) for b in step]
        for w in (0, 2)
    ]
    labels = torch.cat([b.label for b in runs[0]]).tolist()
    assert not set(labels) & {2, 5, 11}
    assert len(labels) == 48
    reported = [entry for b in runs[0] for entry in b.bad]
    assert len(reported) >= 6
    assert set(reported) <= {(f"noise-{i}", "broken on purpose") for i in (2, 5, 11)}
    assert all(same(a, b) and a.bad == b.bad for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_good_image_stops_with_one_line(workers):
    stream = Stream(Noise(bad=range(23)), **SETTINGS, device_batch=8, steps=1, workers=workers)
    with pytest.raises(ValueError, match=r"^noise: 21 images in a row cannot be read: noise-\d+: broken") as caught:
        list(stream)
    assert "\n" not in str(caught.value)


def test_iterating_leaves_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(Stream(Noise(), **SETTINGS, device_batch=8, steps=1, workers=1))
    assert torch.equal(torch.rand(1), expected)


def test_workers_of_pinned_batches_are_as_many_as_dev_shm_holds_and_others_need_none_of_it(monkeypatch):
    monkeypatch.setattr("unmask.data.stream.shutil.disk_usage", lambda path: type("Usage", (), {"free": 250_000}))
    settings = SETTINGS | {"device_batch": 8, "steps": 1}
    some = Stream(Noise(), **settings, workers=16, pin=True)
    assert 0 < some.workers < 16
    assert some.notes[0].startswith(f"/dev/shm has room for the batches of {some.workers} of 16 workers, ")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert Stream(Noise(), **settings, workers=16, pin=True).workers == some.workers // 2
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    large = Stream(Noise(), **settings | {"batch": 800, "device_batch": 800}, workers=16, pin=True)
    assert large.workers == 0 and "0 of 16 workers, so that the process that trains reads" in large.notes[0]
    for workers, pin in ((0, True), (16, False), (some.workers, True)):
        stream = Stream(Noise(), **settings, workers=workers, pin=pin)
        assert stream.workers == workers and stream.notes == []


def test_five_channels_pass_through():
    samples = Samples(FiveBands(), (View(8, twin=4),), (), (), 0, 5, None)
    batch = samples([0, 1])
    assert batch.crops[0].shape == (2, 5, 8, 8)
    assert batch.twins[0].shape == (2, 5, 4, 4)


class FiveBands(Noise):
    def __getitem__(self, i):
        return Record(key(0, i).integers(0, 256, (12, 12, 5), dtype=np.uint8), i, str(i))


def children_of(pid: int) -> list[int]:
    with Path(f"/proc/{pid}/task/{pid}/children").open() as file:
        return [int(child) for child in file.read().split()]


def wait_until_gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(running(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def running(pid: int) -> bool:
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's /proc")


@needs_proc
def test_closing_the_iterator_ends_the_workers_promptly():
    before = set(children_of(os.getpid()))
    iterator = iter(Stream(Noise(), **SETTINGS, device_batch=8, steps=1000, workers=2))
    next(iterator)
    workers = [pid for pid in children_of(os.getpid()) if pid not in before]
    assert len(workers) == 2
    began = time.monotonic()
    iterator.close()
    assert wait_until_gone(workers, 5)
    assert time.monotonic() - began < 5


SCRIPT = """
    import numpy as np, os, sys, time
    sys.path.insert(0, sys.argv[1])
    from test_stream import Noise, SETTINGS, Stream, children_of
    iterator = iter(Stream(Noise(), **SETTINGS, device_batch=8, steps=10**6, workers=2))
    next(iterator)
    print(*children_of(os.getpid()), flush=True)
    time.sleep(60)
"""


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_ignore_signals_to_the_group_but_die_with_their_parent(number):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(Path(__file__).parent)]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        try:
            workers = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(workers) == 2
            assert all(map(running, workers))
            for pid in workers:
                os.kill(pid, signal.SIGTERM)  # a scheduler signals every process of the job
            time.sleep(0.3)
            assert all(map(running, workers))
            os.kill(parent.pid, number)
            assert wait_until_gone(workers, 10)
        finally:
            parent.kill()


def test_workers_write_into_memory_that_is_used_again():
    seen = []
    for (host,) in Stream(Noise(), **SETTINGS, device_batch=8, steps=12, workers=1):
        seen.append(host.crops[0].untyped_storage().data_ptr())
    assert len(set(seen)) <= 4  # two ready, two with the caller


def test_batches_that_are_kept_are_not_written_over():
    kept = [host for (host,) in Stream(Noise(), **SETTINGS, device_batch=8, steps=12, workers=1)]
    assert len({host.crops[0].untyped_storage().data_ptr() for host in kept}) == 12
    for host, (alone,) in zip(kept, Stream(Noise(), **SETTINGS, device_batch=8, steps=12), strict=True):
        assert torch.equal(host.crops[0], alone.crops[0])
