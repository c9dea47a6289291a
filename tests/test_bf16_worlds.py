"""Two processes in bf16 train as one does, though one has an AdamW and gradients of its own; and go on where it was."""

import dataclasses

import pytest
import torch
import toys
from ibot_toys import SMALL
from test_distributed import both_ways, cut, runs_of
from toys import ALONE, TINY

from unmask import passes
from unmask.compilation import optimizer_of
from unmask.run import Run
from unmask.testing.processes import on_processes
from unmask.train import prepare

METHODS = {"mae": TINY, "ibot": dataclasses.replace(SMALL, freeze_last_layer=0)}
CLIP = 0.1
SHAPE = {"base_lr": 1e-3, "clip": CLIP, "save_every": "2", "precision": "bf16", "compile": "auto"}
LOSS, NORM, MOVED = 2e-3, 5e-3, 1e-2
"""bounds after four steps, all relative: of losses, of gradients' norms, and of the way that weights went, as the norm
of the difference; bf16 rounds by up to 4e-3"""


def way(method, state):
    """How far weights are from where training began, as one vector."""
    start = prepare(toys.config("unused", method=method), ALONE)[1].state_dict()
    parts = []
    for name, first in start.items():
        gone = (state[name] - first).double()
        # a bias of the keys cancels in the softmax: its gradient is rounding noise, whose sign Adam follows
        parts += [gone.chunk(3)[0], gone.chunk(3)[2]] if name.endswith("qkv.bias") else [gone.flatten()]
    return torch.cat(parts)


def results(path, methods=METHODS):
    """Of each run its losses, its gradients' norms and the way of its weights."""
    runs = {name: Run(path / name) for name in methods}
    return {
        name: (
            [event["loss"] for event in run.metrics()],
            [event["grad_norm"] for event in run.metrics()],
            way(methods[name], run.method().state_dict()),
        )
        for name, run in runs.items()
    }


def assert_alike(found, reference):
    for name, (losses, norms, went) in reference.items():
        assert found[name][0] == pytest.approx(losses, rel=LOSS), name
        assert found[name][1] == pytest.approx(norms, rel=NORM), name
        assert float((found[name][2] - went).norm() / went.norm()) < MOVED, name
        assert min(norms) > 2 * CLIP


def test_two_processes_train_as_one_in_bf16_and_runs_go_on_both_ways(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    runs_of(ALONE, one, METHODS, "ddp", SHAPE)
    reference = results(one)
    cut(one, METHODS)
    on_processes(both_ways, 2, two, one, METHODS, ("ddp", "fsdp"), SHAPE, timeout=240)
    for found in (two / "ddp", two / "fsdp", one):  # the last began in one process
        assert_alike(results(found), reference)
    cut(two / "fsdp", METHODS)
    runs_of(ALONE, two / "fsdp", METHODS, "ddp", SHAPE)
    assert_alike(results(two / "fsdp"), reference)


@pytest.mark.skipif(passes.why_not() is not None, reason=f"no kernels here: {passes.why_not()}")
def test_one_process_has_an_adamw_of_our_own_and_two_have_pytorchs():
    settled, method = prepare(toys.config("unused", **SHAPE), ALONE)
    assert type(optimizer_of(method, settled, ALONE)) is passes.AdamW
    assert type(optimizer_of(method, settled, ALONE._replace(size=2))) is torch.optim.AdamW
