"""The formulas of docs/scaling.md against the bytes that small models and worlds really keep."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor
from toys import config

from benchmarks import memory
from benchmarks.memory import Stack, Step
from unmask import parallel
from unmask.budget import activation_bytes, synthetic_batch
from unmask.config import DataConfig
from unmask.methods.base import Progress
from unmask.methods.mae import MAEConfig
from unmask.optim import build_optimizer
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


def test_the_tables_of_the_page_are_what_the_script_prints(capsys):
    memory.main()
    page = (Path(__file__).parent.parent / "docs/scaling.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        assert line in page.splitlines(), f"run benchmarks/memory.py again: {line}"
    assert len(re.findall(r"^\| MAE ViT-B/16 ", page, re.MULTILINE)) >= 4
