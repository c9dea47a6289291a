"""Two gloo processes: the same data, the same weights to rounding, checkpoints both ways, and no hanging."""

import dataclasses
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import toys
from ibot_toys import SMALL
from stage_toys import STAGES, without_noise
from torch.distributed.tensor import DTensor
from toys import ALONE, Images, config

from unmask import checkpoint, parallel
from unmask.config import OptimConfig
from unmask.methods import relaxation
from unmask.optim import build_optimizer, clip_gradients
from unmask.run import Run
from unmask.testing.processes import on_processes
from unmask.train import prepare

CLOSE = {"atol": 2e-5, "rtol": 1e-3}
"""fp32 sums in another order, through four steps of AdamW"""


def full(value):
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def trained(world, path, **changes):
    """Train in this world; the final weights, as numbers of any process."""
    run = toys.run(path, world=world, **changes)
    return {name: value.numpy() for name, value in run.method().state_dict().items()} if world.first else None


def weights(path, **changes):
    return {name: torch.from_numpy(value) for name, value in trained(ALONE, path, **changes).items()}


def assert_close(states, reference):
    for name, value in reference.items():
        ours, theirs = torch.as_tensor(states[name]), value
        if name.endswith("qkv.bias"):
            # a bias of the keys cancels in the softmax: its gradient is rounding noise, whose sign Adam follows
            ours, theirs = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (ours, theirs))
        torch.testing.assert_close(ours, theirs, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["adamw", pytest.param("lars", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_that_accumulates(how, name, tmp_path):
    shape = {"name": name, "clip": 0.5, "base_lr": 1e-3}
    reference = weights(tmp_path / "one", device_batch=4, **shape)
    states, nothing = on_processes(run_here, 2, tmp_path / "two", {"device_batch": 4, "parallel": how, **shape})
    assert nothing is None
    assert_close(states, reference)


def run_here(world, path, changes):
    return trained(world, path, **changes)


def stage_here(world, path, stage, changes):
    without_noise()
    return trained(world, path, method=STAGES[stage], batch=16, base_lr=1e-3, **changes)


def assert_stages_equal(stage, tmp_path, changes, *hows):
    """Two processes, of which each sees its own hidden patches, against one that sees all."""
    states = stage_here(ALONE, tmp_path / "one", stage, {"device_batch": 16})
    reference = {name: torch.from_numpy(value) for name, value in states.items()}
    for how in hows:
        found, _ = on_processes(stage_here, 2, tmp_path / how, stage, {"parallel": how, **changes})
        assert_close(found, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_each_stage_of_beit_as_one(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(relaxation, "gumbel", relaxation.gumbel)  # put back what `without_noise` takes away
    assert_stages_equal(stage, tmp_path, {"device_batch": 4}, "ddp")  # two micro-batches each


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_that_shard_train_each_stage_of_beit_as_one(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(relaxation, "gumbel", relaxation.gumbel)
    assert_stages_equal(stage, tmp_path, {"device_batch": 8}, "fsdp")


@pytest.mark.slow
def test_two_processes_that_accumulate_do_so_too(tmp_path):
    reference = weights(tmp_path / "one")
    for how in ("ddp", "fsdp"):
        states, _ = on_processes(run_here, 2, tmp_path / how, {"device_batch": 2, "parallel": how})
        assert_close(states, reference)


def runs_of(world, path, methods, how, shape):
    """Train each method, or go on training it, in folders of their own."""
    for name, method in methods.items():
        toys.run(path / name, world=world, method=method, parallel=how, device_batch=8 // world.size, **shape)
        world.wait()


def both_ways(world, path, begun, methods, hows, shape):
    """Train from the start in each way; then go on in the last one with what one process began."""
    for how in hows:
        runs_of(world, path / how, methods, how, shape)
    runs_of(world, begun, methods, hows[-1], shape)


def cut(path, methods):
    """Leave of finished runs what they had saved halfway."""
    for name in methods:
        checkpoint.remove(path / name, 4)
        assert checkpoint.latest(path / name) == 2


@pytest.mark.parametrize("how", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_runs_go_on_from_one_process_to_two_and_from_two_to_one(how, tmp_path):
    shape = {"save_every": "2", "base_lr": 1e-3}
    methods = {"mae": toys.TINY, "ibot": dataclasses.replace(SMALL, freeze_last_layer=0)}
    one, two = tmp_path / "one", tmp_path / "two"
    runs_of(ALONE, one, methods, how, shape)
    whole = {name: Run(one / name).method().state_dict() for name in methods}
    cut(one, methods)
    on_processes(both_ways, 2, two, one, methods, (how,), shape)
    cut(two / how, methods)
    runs_of(ALONE, two / how, methods, how, shape)
    for path in (one, two / how):
        for name, reference in whole.items():  # iBOT's teacher and centers, too
            assert [event["step"] for event in Run(path / name).metrics()] == [1, 2, 3, 4]
            assert_close(Run(path / name).method().state_dict(), reference)
    assert whole["ibot"]["center"].abs().max() > 100 * CLOSE["atol"]


def clipped(world, optim):
    """Gradients of a sharded or a plain method, all set to known numbers, then clipped."""
    _, method = prepare(config("unused", device_batch=4), world)
    engine = parallel.wrap(method, world, "fsdp")
    trained = [p for p in engine.parameters() if p.requires_grad]
    for i, parameter in enumerate(trained):
        parameter.grad = (parameter.detach() * 0 + 1) * (i % 7)
    norm = clip_gradients(engine.parameters(), optim)
    return [float(norm), *(full(p.grad).numpy() for p in trained)]


@pytest.mark.parametrize("by", [pytest.param("global", marks=pytest.mark.slow), "tensor"])
def test_clipping_sharded_gradients_is_that_of_one_process(by):
    optim = OptimConfig(clip=3.0, clip_by=by)
    expected = sorted(map(str, (float(torch.as_tensor(g).norm()) for g in clipped(ALONE, optim)[1:])))
    for result in on_processes(clipped, 2, optim):
        norms = sorted(map(str, (float(torch.as_tensor(g).norm()) for g in result[1:])))
        assert [float(n) for n in norms] == pytest.approx([float(n) for n in expected], rel=1e-5)
        assert result[0] == pytest.approx(clipped(ALONE, optim)[0], rel=1e-5)


def sharding(world):
    _, method = prepare(config("unused", device_batch=4), world)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(world.rank)  # ranks that differ must start from rank 0's
    engine = parallel.wrap(method, world, "fsdp")
    frozen = engine.encoder.pos_embed
    optimizer = build_optimizer(engine.parameter_groups(), OptimConfig())
    return (
        all(isinstance(p, DTensor) for p in engine.parameters()),
        frozen.requires_grad,
        sum(p.to_local().numel() for g in optimizer.param_groups for p in g["params"]),
        full(engine.encoder.norm.weight).mean().item(),
    )


def test_fsdp_shards_everything_keeps_frozen_parameters_frozen_and_begins_from_rank_0():
    (a, frozen, here, norm), (b, _, there, other) = on_processes(sharding, 2)
    assert a
    assert b
    assert not frozen
    assert norm == other == 1.0
    _, method = prepare(config("unused"), ALONE)
    assert here + there == sum(p.numel() for p in method.parameters() if p.requires_grad)


def evaluated(world, path, how):
    def evaluate(backbone):
        assert not parallel.is_sharded(backbone)
        return {"eval/sum": float(sum(p.sum() for p in backbone.parameters()))}

    run = toys.run(path, world=world, parallel=how, device_batch=4, eval_every="2",
                   evaluate=evaluate if world.first else None)  # fmt: skip
    return [event["eval/sum"] for event in run.metrics() if "eval/sum" in event]


@pytest.mark.parametrize("how", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_rank_0_evaluates_while_the_others_wait(how, tmp_path):
    first, _ = on_processes(evaluated, 2, tmp_path, how)
    assert len(first) == 2


def with_bad_image(world, path, limit):
    settled, method = prepare(config(path, device_batch=4, steps=6), world)
    settled = dataclasses.replace(settled, data=dataclasses.replace(settled.data, bad_limit=limit))
    try:
        return toys.train(settled, Images(24, bad=(3,)), world, method).bad_images()
    except ValueError as error:
        return str(error)


def test_a_bad_image_on_any_rank_is_listed_and_counts_for_all(tmp_path):
    for listed in on_processes(with_bad_image, 2, tmp_path / "a", 0.1):
        assert listed == {"image-3": "cut short"}
    for message in on_processes(with_bad_image, 2, tmp_path / "b", 0.01):
        assert "over the limit" in message


def stuck(world):
    """What a process says of a collective to which the other one comes too late."""
    parallel.limit_waiting(world.device, timedelta(seconds=1))
    if world.rank == 1:
        time.sleep(4)
        return True, "Timed out"
    try:
        world.wait()
    except Exception as error:
        return parallel.is_lost(error), str(error)


def test_a_process_that_does_not_come_is_an_error_and_not_a_wait_without_end():
    for lost, said in on_processes(stuck, 2):
        assert lost
        assert "Timed out" in said
    assert not parallel.is_lost(RuntimeError("shapes differ"))


def facts(world):
    return world.agree(world.rank == 1, False), world.least(5 - world.rank), world.gather(world.rank)


def test_ranks_agree_on_flags_the_least_and_all_values():
    assert on_processes(facts, 2) == [((True, False), 4, [0, 1])] * 2
    assert facts(ALONE) == ((False, False), 5, [0])


FAILING = """
import sys
sys.path[:0] = ["tests"]
import toys
from unmask import parallel, train
world = parallel.start("cpu")
update = train.update
def failing(*args):
    if world.rank == 1 and args[3].step == 2:
        raise RuntimeError("rank 1 has had enough")
    return update(*args)
train.update = failing
toys.run(sys.argv[1], world=world, device_batch=4)
"""


def test_when_one_rank_fails_all_end_with_an_error_and_its_reason_is_kept(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(script), str(tmp_path / "run")],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - begin < 90
    assert f"lost another process, or waited {parallel.WAITING} for it" in done.stderr
    assert "rank 1 has had enough" in (tmp_path / "run" / "errors-rank001.txt").read_text()
