"""The theorem: 20 steps are 10, a kill, and 10 more, bit for bit, in processes that really die."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toys
from stage_toys import STAGES
from toys import same

from unmask import checkpoint
from unmask.optim import build_optimizer
from unmask.run import Run
from unmask.signals import EXIT_STOPPED, Stopped

STEPS = 20
SHAPE = {"steps": STEPS, "save_every": "5"}


def state(path, step=STEPS):
    """Everything that is state: weights and optimizer."""
    run = Run(path)
    method = run.config.method.build()
    optimizer = build_optimizer(method.parameter_groups(), run.config.optim)
    checkpoint.load(path, step, method, optimizer)
    return {"method": dict(method.state_dict()), "optimizer": checkpoint.optimizer_state(optimizer)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole")
    toys.run(path, **SHAPE)
    return state(path)


def child(path, *, slow=0.0, **changes):
    """Train in a process of its own, `slow` seconds longer a step."""
    program = (
        "import sys, time\n"
        "sys.path[:0] = ['tests']\n"
        "import toys\n"
        "from unmask import train\n"
        "from unmask.signals import EXIT_STOPPED, Stopped\n"
        "update = train.update\n"
        f"def slowly(*args):\n    time.sleep({slow})\n    return update(*args)\n"
        "train.update = slowly\n"
        f"try:\n    toys.run({str(path)!r}, **{SHAPE | changes!r})\n"
        "except Stopped:\n    sys.exit(EXIT_STOPPED)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "too slow"
        time.sleep(0.005)


def reached(path, step):
    return lambda: (checkpoint.latest(path) or 0) >= step


def ended(process, seconds=60):
    try:
        process.wait(seconds)
    finally:
        if process.poll() is None:
            process.kill()
    process.stderr.close()
    return process.returncode


@pytest.mark.parametrize("workers", [(0, 0), (2, 1), (0, 2)], ids=str)
def test_ten_a_kill_and_ten_more_are_twenty(workers, whole, tmp_path):
    before, after = workers
    process = child(tmp_path, slow=0.05, workers=before)
    wait_for(reached(tmp_path, 10), process)
    process.send_signal(signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    assert 10 <= checkpoint.latest(tmp_path) < STEPS
    run = toys.run(tmp_path, workers=after, **SHAPE)
    assert same(state(tmp_path), whole)
    assert [event["step"] for event in run.metrics()] == list(range(1, STEPS + 1))


def test_a_kill_at_any_instant_leaves_a_run_that_goes_on(whole, tmp_path):
    chance = random.Random(0)
    seen = 0
    for _ in range(3):
        process = child(tmp_path, save_every="1", keep=2)
        wait_for(reached(tmp_path, min(seen + 2, STEPS - 1)), process)
        time.sleep(chance.uniform(0, 0.05))  # in a step, a save, a rename or a removal
        process.send_signal(signal.SIGKILL)
        ended(process)
        seen = checkpoint.latest(tmp_path)
    toys.run(tmp_path, **SHAPE)
    assert same(state(tmp_path), whole)


def test_a_terminated_run_saves_exits_75_and_goes_on(whole, tmp_path):
    process = child(tmp_path, slow=0.05, workers=1)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(Run(tmp_path).metrics()) > 2, process)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the loader's workers get it, too
    assert ended(process) == EXIT_STOPPED
    step = checkpoint.latest(tmp_path)
    assert 0 < step < STEPS
    assert Run(tmp_path).metrics()[-1]["step"] == step
    toys.run(tmp_path, **SHAPE)
    assert same(state(tmp_path), whole)


def test_interrupted_twice_it_leaves_at_once_with_the_last_checkpoint_intact(whole, tmp_path):
    process = child(tmp_path, slow=0.5, workers=1, save_every="2")
    wait_for(reached(tmp_path, 2), process)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    assert ended(process, 30) == -signal.SIGINT  # Python's own end of a KeyboardInterrupt
    assert time.monotonic() - begin < 15
    assert toys.run(tmp_path, **SHAPE).latest() == STEPS
    assert same(state(tmp_path), whole)


def test_logged_events_after_the_checkpoint_are_forgotten(tmp_path):
    run = toys.run(tmp_path, steps=4, save_every="2")
    checkpoint.remove(tmp_path, 4)
    run.log(step=4, loss=123.0)
    again = toys.run(tmp_path, steps=4, save_every="2")
    assert [event["step"] for event in again.metrics()] == [1, 2, 3, 4]
    assert all(event["loss"] < 100 for event in again.metrics())


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_of_beit_goes_on_bit_for_bit(stage, tmp_path):
    shape = {"steps": 6, "method": STAGES[stage]}
    toys.run(tmp_path / "whole", **shape)
    toys.run(tmp_path / "parts", save_every="3", **shape)
    checkpoint.remove(tmp_path / "parts", 6)
    torch.manual_seed(99)  # Gumbel noise is that of the step
    toys.run(tmp_path / "parts", **shape)
    assert same(state(tmp_path / "whole", 6), state(tmp_path / "parts", 6))


def test_the_noise_inside_the_network_is_that_of_the_step(tmp_path):
    import dataclasses

    vit = dataclasses.replace(toys.TINY.vit, drop_path=0.5)
    method = dataclasses.replace(toys.TINY, vit=vit)
    toys.run(tmp_path / "whole", steps=6, method=method)
    toys.run(tmp_path / "parts", steps=6, method=method, save_every="3")
    checkpoint.remove(tmp_path / "parts", 6)
    torch.manual_seed(99)
    toys.run(tmp_path / "parts", steps=6, method=method)
    assert same(state(tmp_path / "whole", 6), state(tmp_path / "parts", 6))


def test_a_stopped_run_that_had_a_step_left_is_not_finished(tmp_path):
    assert issubclass(Stopped, Exception)
    assert EXIT_STOPPED == 75
