"""A step never asks the device for a value, and batches come to a GPU beside what it computes."""

import contextlib
import dataclasses

import pytest
import torch
import toys
from ibot_toys import SMALL
from stage_toys import BEIT, DVAE
from test_classify import TINY as CLASSIFY
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ALONE, Images

from unmask import step, views
from unmask.meter import Meter
from unmask.methods.base import Batch, Progress
from unmask.optim import build_optimizer
from unmask.step import Upload, share_hidden, to_device, update
from unmask.train import prepare, stream_of
from unmask.views import Blur, Jitter, View

COLORFUL = {"jitter": Jitter(), "gray": 0.5, "blur": Blur(), "solarize": 0.5}
IBOT = dataclasses.replace(SMALL, views=(View(16, **COLORFUL), View(16, **COLORFUL), View(8, count=3, **COLORFUL)))
METHODS = {
    "mae": toys.TINY, "beit": BEIT, "ibot": IBOT, "dino": dataclasses.replace(IBOT, masks=()), "dvae": DVAE,
    "supervised": CLASSIFY,
}  # fmt: skip
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "is_nonzero", "equal")


class NeverReads(TorchDispatchMode):
    """Refuses what makes a GPU's host wait: reading a value, and shapes that depend on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        picks = name in ("index", "index_put_", "_unsafe_index") and args[1]
        if name in FORBIDDEN or (picks and any(i is not None and i.dtype == torch.bool for i in args[1])):
            raise AssertionError(f"{name} asks the device to wait")
        return function(*args, **(kwargs or {}))


class Labelled(Images):
    """Toys with two classes."""

    def __getitem__(self, i):
        return super().__getitem__(i)._replace(label=i % 2)


def steps_of(name, tmp_path, device_batch=4):
    """What a run of two steps needs: configuration, method, and the batches of each step on the CPU."""
    torch.manual_seed(0)
    config, method = prepare(
        toys.config(tmp_path, method=METHODS[name], steps=2, device_batch=device_batch, clip=1.0), ALONE
    )
    return config, method, list(stream_of(config, Labelled(), ALONE, 0, 2))


@pytest.mark.parametrize("name", METHODS)
def test_no_step_reads_a_value_from_the_device(name, tmp_path):
    config, method, hosts = steps_of(name, tmp_path)
    optimizer, meter = build_optimizer(method.parameter_groups(), config.optim), Meter(ALONE, config.batch)
    method.train()
    with NeverReads():
        for i, micro in enumerate(hosts):
            batches = [to_device(host, config, ALONE.device) for host in micro]
            share_hidden(batches, ALONE)
            meter.add(i, *update(method, optimizer, batches, Progress(i, 2, 3.0), config, ALONE))
    assert meter.steps == 2


@pytest.mark.parametrize("name", METHODS)
def test_no_step_copies_to_the_host(name, tmp_path, monkeypatch):
    """On the meta device nothing has a value, so that a `.cpu()`, `.tolist()` or `.numpy()` fails, too."""
    config, method, hosts = steps_of(name, tmp_path)
    meta = ALONE._replace(device=torch.device("meta"))
    autocast = torch.autocast  # knows no meta
    monkeypatch.setattr(torch, "autocast", lambda _, **how: autocast("cpu", **how))
    monkeypatch.setattr(views, "erase", lambda *_: None)  # its generator knows no meta either
    method = method.to("meta").train()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, foreach=False)  # the step of AdamW counts on the CPU
    optimizer.param_groups[0] |= {"lr_scale": 1.0, "decay": True}
    for i, micro in enumerate(hosts):
        batches = [to_device(host, config, meta.device) for host in micro]
        share_hidden(batches, meta)
        result = update(method, optimizer, batches, Progress(i, 2, 3.0), config, meta)
        assert result.loss.device.type == "meta"


def test_a_step_that_reads_is_found():
    with NeverReads():
        for reads in (
            lambda x: x.sum().item(), lambda x: bool((x > 0).all()), lambda x: x[x > 0], lambda x: x.nonzero(),
        ):  # fmt: skip
            with pytest.raises(AssertionError, match="asks the device to wait"):
                reads(torch.ones(3))


class Traced(torch.Tensor):
    """A tensor that says by which stream it will be used."""

    def record_stream(self, stream):
        stream.log.append(("keeps", stream.name))


class Stream:
    """In the place of a CUDA stream: notes who waits for whom."""

    log: list = []

    def __init__(self, name):
        self.name = name

    def wait_stream(self, other):
        self.log.append((self.name, "waits for", other.name))


def test_a_gpu_copies_the_next_batch_beside_the_step(tmp_path, monkeypatch):
    config, _, hosts = steps_of("mae", tmp_path, device_batch=8)
    log, main = Stream.log, Stream("main")
    log.clear()

    @contextlib.contextmanager
    def on(stream):
        log.append(("on", stream.name))
        yield
        log.append(("off", stream.name))

    def copied(host, config, device):
        log.append(("copies", int(host.position[0])))
        return Batch(views=(torch.ones(1).as_subclass(Traced),), position=torch.ones(1).as_subclass(Traced))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(step, "to_device", copied)
    upload = Upload(config, torch.device("cuda"))
    assert log == [("side", "waits for", "main")]
    log.clear()
    for micro in hosts:
        upload(micro)
    for first, part in zip((0, 8), (log[:6], log[6:]), strict=True):
        assert part[:4] == [("on", "side"), ("copies", first), ("off", "side"), ("main", "waits for", "side")]
        assert part[4:] == [("keeps", "main")] * 2  # and the side never waits for the step


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_gpu_is_given_is_what_a_cpu_is(tmp_path):
    config, _, hosts = steps_of("ibot", tmp_path)
    given, there = Upload(config, ALONE.device)(hosts[0]), Upload(config, torch.device("cuda"))(hosts[0])
    for a, b in zip(given[0].views, there[0].views, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=0.02, rtol=0)
