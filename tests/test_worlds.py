"""Four gloo processes are one: losses, centers and weights; gradients cross once a step; checkpoints fit any world."""

import dataclasses

import pytest
import toys
from ibot_toys import SMALL
from test_beit import TINY as BEIT
from test_distributed import assert_close, run_here
from torch.profiler import ProfilerActivity, profile
from toys import ALONE, TINY, config

from unmask import checkpoint, parallel
from unmask.budget import synthetic_batch
from unmask.methods.base import Progress
from unmask.optim import build_optimizer
from unmask.run import Run
from unmask.step import update
from unmask.testing.processes import on_processes
from unmask.train import prepare

IBOT = dataclasses.replace(SMALL, freeze_last_layer=0)
METHODS = {"mae": TINY, "beit": BEIT, "ibot": IBOT}
LOSS, CENTER = 2e-5, 2e-6
"""bounds on a loss (relative) and on iBOT's centers (absolute): fp32 sums in another order, four steps"""


def runs(world, path, hows):
    """The losses of every method's run, and iBOT's centers."""
    found = {}
    for how in hows:
        for name, method in METHODS.items():
            shape = {"parallel": how, "device_batch": 8 // world.size, "base_lr": 1e-3}
            run = toys.run(path / f"{name}-{how}", world=world, method=method, **shape)
            world.wait()
            found[name, how] = [event["loss"] for event in run.metrics()]
            if name == "ibot":
                trained = run.method()
                found["centers", how] = [*trained.center.tolist(), *trained.patch_center.tolist()]
    return found


@pytest.mark.parametrize("how", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_losses_and_centers_of_four_processes_are_those_of_one(how, tmp_path):
    alone = runs(ALONE, tmp_path / "one", (how,))
    for found in on_processes(runs, 4, tmp_path / "four", (how,), timeout=400):
        for name in METHODS:
            assert found[name, how] == pytest.approx(alone[name, how], rel=LOSS), name
        assert found["centers", how] == pytest.approx(alone["centers", how], abs=CENTER)
    assert max(map(abs, alone["centers", how])) > 100 * CENTER


def exchanges(world):
    """How often gradients are added up between ranks in a step of one and of four micro-batches."""
    found = {}
    for how in ("ddp", "fsdp"):
        settled, method = prepare(config("unused", device_batch=2), world)
        engine = parallel.wrap(method, world, how)
        optimizer = build_optimizer(method.parameter_groups(), settled.optim)
        for micro in (1, 4):
            batches = [synthetic_batch(TINY, settled.data, 2, world.device)] * micro
            update(engine, optimizer, batches, Progress(0, 4, 1.0), settled, world)
            with profile(activities=[ProfilerActivity.CPU]) as record:
                update(engine, optimizer, batches, Progress(1, 4, 1.0), settled, world)
            names = [event.name for event in record.events() or [] if event.name.startswith("c10d::")]
            found[how, micro] = sum("reduce" in name for name in names)
    return found


def test_gradients_cross_once_a_step_however_many_micro_batches():
    for found in on_processes(exchanges, 2, timeout=400):
        assert found["ddp", 1] == found["ddp", 4] > 0
        assert found["fsdp", 1] == found["fsdp", 4] > 1  # a block each, and the norm


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 4), (4, 2), (4, 1)])
def test_a_checkpoint_of_n_processes_is_read_by_m(first, then, tmp_path):
    shape = {"save_every": "2", "base_lr": 1e-3}
    reference = toys.run(tmp_path / "whole", **shape).method().state_dict()

    def go(count):
        changes = {"parallel": "fsdp", "device_batch": 8 // count, **shape}
        if count == 1:
            return toys.run(tmp_path / "parts", **changes)
        return on_processes(run_here, count, tmp_path / "parts", changes, timeout=400)

    go(first)
    checkpoint.remove(tmp_path / "parts", 4)
    go(then)
    assert [event["step"] for event in Run(tmp_path / "parts").metrics()] == [1, 2, 3, 4]
    assert_close(Run(tmp_path / "parts").method().state_dict(), reference)
