"""The formulas of docs/scaling.md against the bytes that small models and worlds really keep and exchange."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from ibot_toys import SMALL
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import config

from benchmarks import memory
from benchmarks.memory import Stack, Step
from unmask import parallel
from unmask.budget import activation_bytes, synthetic_batch
from unmask.config import DataConfig
from unmask.methods.base import Progress
from unmask.methods.mae import MAEConfig
from unmask.optim import build_optimizer
from unmask.step import update
from unmask.testing.processes import on_processes
from unmask.train import prepare
from unmask.views import View
from unmask.vit import ViTConfig, macs

CPU = torch.device("cpu")


def mae(depth: int) -> MAEConfig:
    """64 patches, of which the encoder sees 16."""
    vit = ViTConfig(image_size=32, patch=4, width=64, depth=depth, heads=2, pos_embed="sincos", init="mae")
    return MAEConfig(vit=vit, views=(View(32),), decoder_width=32, decoder_depth=2, decoder_heads=2)


ENCODER = Stack(64, 1, 2, (17,))


def kept(depth: int, recomputed: bool) -> float:
    """Bytes an image that are measured."""
    method = mae(depth).build()
    batch = synthetic_batch(method.config, DataConfig(), 4, CPU)
    return activation_bytes(method, batch, lambda: parallel.autocast(CPU, "fp32"), recomputed)


def test_a_block_keeps_what_the_formula_says():
    a_block = (kept(6, False) - kept(2, False)) / 4
    assert a_block == pytest.approx(ENCODER.block_bytes("fp32"), rel=0.02)


def test_a_recomputed_block_keeps_its_input():
    a_block = (kept(6, True) - kept(2, True)) / 4
    assert a_block == pytest.approx(17 * 64 * 4, rel=0.02)


def test_blocks_have_the_parameters_and_the_products_of_the_formula():
    method = mae(3).build()
    assert sum(p.numel() for p in method.encoder.blocks.parameters()) == 3 * ENCODER.block
    stack = dataclasses.replace(ENCODER, depth=3)
    assert stack.flops == 6 * macs(method.config.vit, 17)


@pytest.mark.parametrize(
    ("step", "millions", "gflop"),
    [(memory.mae("B"), 111.7, 58.7), (memory.mae("L"), 329.2, 124.5), (memory.mae("H", 14), 657.1, 291),
     (memory.beit("B"), 92.0, 108.2), (memory.beit("L"), 311, 373)],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_published_models_have_their_parameters_and_operations(step, millions, gflop):
    assert step.trained / 1e6 == pytest.approx(millions, rel=0.01)
    assert step.flops / 1e9 == pytest.approx(gflop, rel=0.02)


def held(world, how):
    """Bytes of weights, gradients and optimizer on this rank after a step."""
    settled, method = prepare(config("unused", method=mae(4), device_batch=2), world)
    engine = parallel.wrap(method, world, how)
    optimizer = build_optimizer(method.parameter_groups(), settled.optim)
    batch = synthetic_batch(settled.method, settled.data, 2, world.device)
    engine(batch, Progress(0, 4, 1.0)).loss.backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    grads = [p.grad for p in engine.parameters() if p.grad is not None]
    local = [t.to_local() if isinstance(t, DTensor) else t for t in (*engine.parameters(), *grads, *states)]
    return sum(tensor.nbytes for tensor in local)


@pytest.mark.parametrize("how", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_ranks_hold_sixteen_bytes_a_parameter_or_their_share_of_it(how):
    method = mae(4).build()
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in method.parameters()) - trained
    step = Step("mae", (Stack(64, 4, 2, (17,)), Stack(32, 2, 2, (65,))), 0, 0)
    step = dataclasses.replace(step, outside=trained - step.trained)
    expected = step.state_bytes(2, how == "fsdp") + 4 * frozen / (2 if how == "fsdp" else 1)
    for measured in on_processes(held, 2, how):
        assert measured == pytest.approx(expected, rel=0.03)


WIDE = dataclasses.replace(SMALL, freeze_last_layer=0, vit=dataclasses.replace(SMALL.vit, width=64, depth=8))
STUDENT = Stack(64, 8, 2, (17, 17, 5, 5, 5))
STEPS = {
    "mae": (mae(4), (Stack(64, 4, 2, (17,)), Stack(32, 2, 2, (65,)))),
    "ibot": (WIDE, (STUDENT, dataclasses.replace(STUDENT, tokens=(17, 17), backward=False))),
}


class Collectives(TorchDispatchMode):
    """Bytes of whole tensors that processes exchange, by what is done with them."""

    NAMES = {"allreduce_": "sums", "_allgather_base_": "gathers", "_reduce_scatter_base_": "scatters"}

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and (name := self.NAMES.get(func.overloadpacket.__name__)):
            self.bytes[name] += max(t.nbytes for t in tree_leaves(args) if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


def exchanged(world):
    """What a step exchanges, of every method, way and number of micro-batches."""
    found = {}
    for name, (method, _) in STEPS.items():
        for how, recompute in (("ddp", "off"), ("fsdp", "off"), ("fsdp", "on")):
            settled, built = prepare(config("unused", method=method, device_batch=2, recompute=recompute), world)
            engine = parallel.wrap(built, world, how).train()
            optimizer = build_optimizer(built.parameter_groups(), settled.optim)
            batches = [synthetic_batch(method, settled.data, 2, world.device)] * 2
            update(engine, optimizer, batches, Progress(0, 4, 1.0), settled, world)  # DDP says which buckets it makes
            for micro in (1, 2):
                with Collectives() as record:
                    update(engine, optimizer, batches[:micro], Progress(1, 4, 1.0), settled, world)
                found[name, how, recompute, micro] = record.bytes
    return found


def test_a_step_exchanges_the_bytes_of_the_formula():
    for found in on_processes(exchanged, 2):
        for (name, how, recompute, micro), measured in found.items():
            method, stacks = STEPS[name]
            step = Step(name, stacks, 0, 0)
            trained = sum(p.numel() for p in method.build().parameters() if p.requires_grad)
            step = dataclasses.replace(step, outside=trained - step.trained)
            expected = step.exchanged_bytes(how == "fsdp", micro)
            if (name, how, micro) == ("ibot", "fsdp", 2):  # blocks that see two sizes of crops scatter after each
                expected += 4 * STUDENT.block * STUDENT.depth
            total = measured["gathers"] + measured["scatters"] + 2 * measured["sums"]
            assert total == pytest.approx(expected, rel=0.03), (name, how, recompute, micro)
            assert (measured["gathers"] > 0) == (how == "fsdp")


def test_the_tables_of_the_page_are_what_the_script_prints(capsys):
    memory.main()
    page = (Path(__file__).parent.parent / "docs/scaling.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        assert line in page.splitlines(), f"run benchmarks/memory.py again: {line}"
    assert len(re.findall(r"^\| MAE ViT-B/16 ", page, re.MULTILINE)) >= 4
