"""The loop: what it writes, when it stops, and what it never saves."""

import dataclasses
import math
import os
import signal

import pytest
import torch
import toys
from toys import ALONE, TINY, Images, config, same

from unmask import checkpoint
from unmask.budget import synthetic_batch
from unmask.compilation import compile_blocks
from unmask.config import DataConfig
from unmask.data.stream import Stream
from unmask.masks import BlockMask
from unmask.meter import Diverged
from unmask.methods.base import Method
from unmask.methods.ibot import IBOTConfig
from unmask.methods.mae import MAE, MAEConfig
from unmask.optim import build_optimizer
from unmask.run import Run
from unmask.schedules import Progress
from unmask.signals import Stopped, StopSignals
from unmask.step import to_device, update
from unmask.train import Due, prepare, stream_of, total_steps
from unmask.views import View
from unmask.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class TroubledConfig(MAEConfig):
    """A MAE to which something happens at a step."""

    at: int = 3
    what: str = "nan"

    def build(self):
        return Troubled(self)


class Troubled(MAE):
    def forward(self, batch, at):
        out = super().forward(batch, at)
        if at.step >= self.config.at and self.training:
            if self.config.what == "nan":
                return out._replace(loss=out.loss * float("nan"))
            if self.config.what == "gradient":
                out.loss.register_hook(lambda gradient: gradient * float("inf"))
            if at.step == self.config.at and self.config.what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, self.config.what))
        return out


def troubled(at, what):
    fields = {f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY)}
    return TroubledConfig(**fields, at=at, what=what)


def test_a_run_trains_and_leaves_its_directory_complete(tmp_path):
    run = toys.run(tmp_path, steps=30)
    events = run.metrics()
    assert [event["step"] for event in events] == list(range(1, 31))
    assert events[-1]["images"] == 240
    assert events[-1]["epoch"] == pytest.approx(10)
    assert sum(e["loss"] for e in events[-3:]) < sum(e["loss"] for e in events[:3])
    assert {"loss", "grad_norm", "lr", "img/s", "data_wait", "outside_step", "memory_gb"} <= events[0].keys()
    assert all(math.isfinite(value) for event in events for value in event.values())
    assert run.steps() == [30]
    assert "done: 30 steps" in (tmp_path / "log.txt").read_text()


def test_what_a_stream_has_to_say_is_said_before_the_first_step_and_changes_no_configuration(tmp_path, monkeypatch):
    def told(*given):
        stream = stream_of(*given)
        stream.notes.append("/dev/shm is small")
        return stream

    monkeypatch.setattr("unmask.train.stream_of", told)
    run = toys.run(tmp_path, steps=1)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.endswith("/dev/shm is small") for line in lines].count(True) == 1
    assert "done" not in lines[0] and "done" in lines[-1]
    assert run.config.workers == Run(tmp_path).config.workers == 0


def test_the_rate_in_the_log_is_the_schedules(tmp_path):
    run = toys.run(tmp_path, steps=9)
    schedule = run.config.optim.lr_schedule(8)
    assert [e["lr"] for e in run.metrics()] == pytest.approx([schedule(Progress(s, 9, 3.0)) for s in range(9)])


def test_a_finished_run_says_so_and_does_nothing(tmp_path):
    run = toys.run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    weights = run.method().state_dict()
    again = toys.run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert same(dict(weights), dict(again.method().state_dict()))
    assert "is finished: 4 steps are done; train longer with --from" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("what", ["nan", "gradient"])
def test_a_diverged_run_names_the_step_and_the_cure_and_keeps_the_good_checkpoint(what, tmp_path):
    with pytest.raises(Diverged, match="not finite at step 3 of") as caught:
        toys.run(tmp_path, steps=8, method=troubled(3, what), save_every="1", log_every=100)
    message = str(caught.value)
    assert "checkpoint step 3 is from before" in message
    assert "--optim.base-lr" in message
    assert "\n" not in message
    assert checkpoint.latest(tmp_path) == 3
    assert all(torch.isfinite(value).all() for value in Run(tmp_path).method().state_dict().values())


def test_divergence_between_saves_is_found_at_the_next_line_of_the_log(tmp_path):
    with pytest.raises(Diverged, match=r"at step 3 of .* no checkpoint was made yet"):
        toys.run(tmp_path, steps=20, method=troubled(3, "nan"), log_every=5)
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(name, tmp_path):
    with pytest.raises(Stopped, match=f"^{name} at step 3 of 6, saved to .*; the same command continues"):
        toys.run(tmp_path, steps=6, method=troubled(2, name))
    assert checkpoint.latest(tmp_path) == 3
    run = toys.run(tmp_path, steps=6, method=troubled(2, name))
    assert run.latest() == 6
    assert [event["step"] for event in run.metrics()] == [1, 2, 3, 4, 5, 6]


def test_a_second_interrupt_leaves_at_once_and_the_old_handlers_return():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_bad_images_are_substituted_counted_and_listed(tmp_path):
    source = Images(24, bad=(3, 17))
    settled, method = prepare(config(tmp_path, steps=6), ALONE)
    settled = dataclasses.replace(settled, data=dataclasses.replace(settled.data, bad_limit=0.1))
    run = toys.train(settled, source, ALONE, method)
    assert run.bad_images() == {"image-3": "cut short", "image-17": "cut short"}
    assert run.latest() == 6


def test_more_bad_images_than_the_limit_stop_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"of 24 images cannot be read, over the limit of 1\.0%") as caught:
        toys.run(tmp_path, steps=6, source=Images(24, bad=(3,)))
    assert "image-3: cut short" in str(caught.value)
    assert "--data.bad-limit" in str(caught.value)
    assert "image-3" in (tmp_path / "bad-files.txt").read_text()


def test_a_run_of_nothing_but_bad_images_stops(tmp_path):
    with pytest.raises(ValueError, match="in a row cannot be read"):
        toys.run(tmp_path, source=Images(24, bad=range(24)))


def test_evaluation_runs_at_its_interval_and_at_the_end(tmp_path):
    seen = []

    def evaluate(backbone):
        seen.append(backbone)
        return {"eval/knn": 0.5}

    run = toys.run(tmp_path, steps=5, eval_every="2", evaluate=evaluate)
    assert [e["step"] for e in run.metrics() if "eval/knn" in e] == [2, 4, 5]
    assert len(seen) == 3


def gradients_of(settled, method, count):
    """Weights after one update of plain SGD: the gradient, in effect."""
    settled = dataclasses.replace(settled, device_batch=count)
    stream = Stream(
        Images(), views=settled.method.views, masks=settled.method.masks, grids=settled.method.grids(),
        seed=0, batch=8, device_batch=count, steps=1,
    )  # fmt: skip
    (hosts,) = stream
    batches = [to_device(host, settled, torch.device("cpu")) for host in hosts]
    optimizer = build_optimizer(method.parameter_groups(), settled.optim)
    update(method, optimizer, batches, Progress(0, 1, 1.0), settled, ALONE)
    return method.state_dict()


@pytest.mark.parametrize("count", [4, 2, 1])
def test_accumulation_gives_the_update_of_the_whole_batch(count, tmp_path):
    states = []
    for device_batch in (8, count):
        settled, method = prepare(config(tmp_path, name="sgd", schedule="constant", base_lr=1.0), ALONE)
        states.append(gradients_of(settled, method, device_batch))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_epochs_become_steps():
    whole = config("x", steps=None, epochs=2.5)
    assert total_steps(whole, 24) == 8
    assert total_steps(config("x", steps=7), 24) == 7


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch 8 is not a multiple of device batch 3 x 1 processes"):
        prepare(config(tmp_path, device_batch=3), ALONE)


def test_what_is_left_open_is_settled(tmp_path):
    settled, method = prepare(config(tmp_path, device_batch=None, precision="auto", workers=-1), ALONE)
    assert isinstance(method, Method)
    assert settled.device_batch == 8
    assert settled.precision in ("fp32", "bf16")
    assert settled.workers >= 1


def test_the_same_seed_builds_the_same_weights_and_another_one_others(tmp_path):
    first, again, other = (prepare(config(tmp_path, seed=s), ALONE)[1].state_dict() for s in (0, 0, 1))
    assert same(dict(first), dict(again))
    assert not same(dict(first), dict(other))


def test_intervals_come_due_by_steps_and_by_time(monkeypatch):
    due = Due("3", 6)
    assert [step for step in range(6, 13) if due(step)] == [9, 12]
    assert not any(Due(None, 0)(step) for step in range(5))
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    due = Due("10s", 0)
    now[0] = 9.0
    assert not due(1)
    now[0] = 10.0
    assert due(2)
    due.restart()
    assert not due(3)


# tests check shapes at every call, and Dynamo looks at what the checks compare, gradients too
DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@DYNAMO
@pytest.mark.parametrize("whole", [False, True], ids=["by-block", "whole"])
def test_blocks_of_many_kinds_are_all_compiled(whole, monkeypatch):
    vit = ViTConfig(image_size=16, patch=4, width=16, depth=10, heads=2, pos_resize="factor", drop_path=0.2)
    views = (View(16, count=2), View(8, count=2))  # another length of sequence, and a teacher without gradients
    masks = (BlockMask(count=4, smallest=1),) * 2
    config = IBOTConfig(vit=vit, views=views, masks=masks, prototypes=16, head_width=8, bottleneck=4)
    method = config.build().train()
    by_torch = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: by_torch(function, backend="eager", **how))
    # not by monkeypatch, after which these settings are hidden from whoever compiles next
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        compile_blocks(method, whole)
        for images in (2, 3, 4):
            batch = synthetic_batch(config, DataConfig(), images, torch.device("cpu"))
            method(batch, Progress(0, 9, 1.0)).loss.backward()


@pytest.mark.slow
@DYNAMO
def test_compiled_blocks_train(tmp_path):
    run = toys.run(tmp_path, steps=2, compile="on")
    assert run.latest() == 2
