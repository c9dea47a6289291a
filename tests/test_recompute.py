"""Recomputation changes memory and time, and not one bit of the loss, the gradients or the weights."""

import dataclasses

import pytest
import torch
import toys
from ibot_toys import SMALL
from toys import ALONE, config, same

from unmask import checkpoint, parallel
from unmask.budget import activation_bytes, synthetic_batch
from unmask.config import DataConfig
from unmask.methods.base import Progress
from unmask.recompute import recompute
from unmask.run import Run
from unmask.testing.processes import on_processes
from unmask.train import prepare

DEEP = dataclasses.replace(toys.TINY, vit=dataclasses.replace(toys.TINY.vit, depth=6, drop_path=0.5))
IBOT = dataclasses.replace(SMALL, vit=dataclasses.replace(SMALL.vit, depth=3, drop_path=0.5))
METHODS = pytest.mark.parametrize("method", [DEEP, IBOT], ids=["mae", "ibot"])


def gradients(method, on, dtype=torch.float32, compiled=False):
    """The loss of a batch and all gradients."""
    torch.manual_seed(0)
    network = method.build().train()
    recompute(network, on)
    if compiled:
        for block in network.blocks():
            block.compile()
    batch = synthetic_batch(method, DataConfig(), 4, torch.device("cpu"))
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = network(batch, Progress(1, 4, 1.0)).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_loss_and_gradients_are_the_same_bits_with_drop_path(method, dtype):
    plain, again = gradients(method, False, dtype), gradients(method, True, dtype)
    assert same(plain, again)
    assert len(plain) > 30


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the shape checker's looking
def test_compiled_blocks_recompute_to_the_same_gradients():
    still = dataclasses.replace(DEEP, vit=dataclasses.replace(DEEP.vit, depth=1, drop_path=0.0))
    plain, again = gradients(still, False, compiled=True), gradients(still, True, compiled=True)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-3)


def test_the_blocks_run_twice_and_only_when_it_is_on():
    network = DEEP.build()
    batch = synthetic_batch(DEEP, DataConfig(), 2, torch.device("cpu"))
    calls = []
    network.encoder.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    for on, times in ((True, 2), (False, 1)):
        recompute(network, on)
        calls.clear()
        network(batch, Progress(0, 1, 1.0)).loss.backward()
        assert len(calls) == times


@METHODS
def test_what_is_kept_is_the_inputs_and_one_block(method):
    network = method.build()
    batch = synthetic_batch(method, DataConfig(), 2, torch.device("cpu"))

    def fp32():
        return parallel.autocast(torch.device("cpu"), "fp32")

    everything, little = (activation_bytes(network, batch, fp32, on) for on in (False, True))
    assert little < 0.6 * everything
    network.train()
    held = []  # what autograd really holds: the hooks of checkpoint itself keep all but this from view
    recompute(network, True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        network(batch, Progress(0, 1, 1.0))
    outside = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values()) / 2
    assert outside < little + 4 * sum(p.numel() for p in network.parameters())


def test_a_run_continues_with_recomputation_switched_on_and_ends_in_the_same_state(tmp_path):
    whole = toys.run(tmp_path / "whole", method=DEEP)
    toys.run(tmp_path / "parts", method=DEEP, save_every="2")
    checkpoint.remove(tmp_path / "parts", 4)
    again = toys.run(tmp_path / "parts", method=DEEP, recompute="on", save_every="2")
    assert Run(tmp_path / "parts").config.recompute == "on"
    assert same(dict(again.method().state_dict()), dict(whole.method().state_dict()))


def by_rank(world, path, how):
    """The final weights of a plain and of a recomputing run, of two micro-batches a step."""
    found = []
    for on in ("off", "on"):
        shape = {"method": DEEP, "parallel": how, "device_batch": 2, "recompute": on}
        run = toys.run(path / on, world=world, steps=2, **shape)
        world.wait()
        found.append({n: v.numpy().copy() for n, v in run.method().state_dict().items()})
    return found


@pytest.mark.parametrize("how", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_ranks_recompute_to_the_same_bits_while_they_accumulate(how, tmp_path):
    (plain, again), _ = on_processes(by_rank, 2, tmp_path, how)
    assert all((again[name] == value).all() for name, value in plain.items())


def test_the_device_batch_that_fits_is_larger_with_recomputation(monkeypatch, tmp_path):
    monkeypatch.setattr("unmask.budget.CPU_WORKING_SET", 3 << 20)
    fits = [
        prepare(config(tmp_path, method=DEEP, batch=64, device_batch=None, recompute=on), ALONE)[0].device_batch
        for on in ("off", "on")
    ]
    assert 1 <= fits[0] < fits[1]
