"""Blocks compiled one by one, as in a run of several processes, train as those that are not compiled."""

import dataclasses

import pytest
import torch
from ibot_toys import SMALL
from test_distributed import full
from toys import TINY, config

from unmask import parallel
from unmask.budget import synthetic_batch
from unmask.compilation import compile_blocks
from unmask.methods.base import Progress
from unmask.optim import build_optimizer
from unmask.step import update
from unmask.testing.processes import on_processes
from unmask.train import prepare

WAYS = [("ddp", "off"), ("fsdp", "off"), ("fsdp", "on")]
STEPS = 2
IBOT = dataclasses.replace(SMALL, freeze_last_layer=0, vit=dataclasses.replace(SMALL.vit, drop_path=0.3))


def stepped(world, method, how, recompute, compiled):
    """Gradients' norms and weights of two steps of SGD, which moves weights as far as gradients say."""
    shape = {"method": method, "device_batch": 2, "batch": 4, "name": "sgd", "base_lr": 0.1, "warmup_epochs": 0.0,
             "clip": 1.0}  # fmt: skip
    settled, built = prepare(config("unused", recompute=recompute, **shape), world)
    engine = parallel.wrap(built, world, how).train()
    optimizer = build_optimizer(built.parameter_groups(), settled.optim)
    if compiled:
        compile_blocks(built, whole=False)
        assert all(block.compiled for block in built.blocks())
    norms = []
    for step in range(STEPS):
        batches = [synthetic_batch(method, settled.data, 2, world.device)]
        norms.append(float(update(engine, optimizer, batches, Progress(step, STEPS, 1.0), settled, world).grad_norm))
    return norms, {name: full(p) for name, p in built.named_parameters()}


def differences(world, method):
    """Of each way: the norms, the largest difference of a weight, and how many graphs there are by then."""
    import torch._dynamo as dynamo

    by_torch = torch.compile
    # differentiates and frees what it kept as the default backend does, and needs no compiler of C++
    torch.compile = lambda function, **how: by_torch(function, backend="aot_eager", **how)
    dynamo.config.fail_on_recompile_limit_hit = True
    found = []
    for how, recompute in WAYS:
        (norms, weights), (others, compiled) = (stepped(world, method, how, recompute, c) for c in (False, True))
        most = max(float((compiled[name] - value).abs().max()) for name, value in weights.items())
        found.append((norms, others, most, dynamo.utils.counters["stats"]["unique_graphs"]))
    assert not dynamo.utils.counters["graph_break"]
    return found


@pytest.mark.parametrize("method", [TINY, pytest.param(IBOT, marks=pytest.mark.slow)], ids=["mae", "ibot"])
def test_compiled_blocks_train_as_others_under_ddp_and_fsdp_with_and_without_recomputation(method):
    for found in on_processes(differences, 2, method, timeout=300):
        assert len(found) == len(WAYS)
        for norms, others, most, graphs in found:
            assert others == pytest.approx(norms, rel=1e-5)
            assert norms[0] != norms[1]
            assert most < 1e-6
            assert graphs > 0
