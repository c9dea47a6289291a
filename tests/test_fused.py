"""The kernels of compiled blocks on a GPU: their arithmetic, by an interpreter, and when they are used."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from unmask import fused
from unmask.blocks import Stack
from unmask.vit import ViT, ViTConfig

pytest.importorskip("triton", reason="Triton is part of PyTorch for Linux")


@pytest.fixture(scope="module")
def errors():
    """Relative errors in fp32 by name of the check; one process, as the interpreter is chosen when it starts."""
    script = Path(__file__).parent / "fused_toys.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(script.parent.parent)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_outputs_and_all_gradients_are_those_of_the_formula_in_double_precision(errors):
    kernels = {name: error for name, error in errors.items() if name.startswith(("attention", "gelu"))}
    assert len(kernels) == 10
    assert max(kernels.values()) < 2e-6, kernels


def test_methods_whose_blocks_go_through_them_have_the_loss_and_the_gradients_of_pytorchs(errors):
    methods = {name: error for name, error in errors.items() if name.startswith(("MAE", "BEiT", "iBOT"))}
    assert len(methods) == 3
    assert max(methods.values()) < 1e-5, methods


def test_they_are_used_in_bf16_on_a_gpu_while_a_block_is_compiled_and_nowhere_else(monkeypatch):
    with FakeTensorMode():
        there = torch.empty(1, device="cuda")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert fused.usable(there)
    assert not fused.usable(torch.empty(1))
    for name, value in (("is_autocast_enabled", lambda kind: False), ("get_autocast_dtype", lambda kind: torch.half)):
        with monkeypatch.context() as other:
            other.setattr(torch, name, value)
            assert not fused.usable(there)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    assert not fused.usable(there)


def test_attention_is_for_lengths_and_widths_that_were_measured():
    assert fused.fits(197, 64) and fused.fits(256, 32)
    assert not fused.fits(257, 64) and not fused.fits(197, 80)


def test_a_compiled_stack_is_for_training_and_not_copied():
    vit = ViT(ViTConfig(image_size=16, patch=8, width=16, depth=2, heads=2)).train()
    used = []
    vit.blocks.compiled = lambda x, bias, only: (used.append(1), vit.blocks.through(x, bias, only))[1]
    image = torch.randn(2, 3, 16, 16)
    trained = vit(image).patches
    assert used == [1]
    assert torch.equal(vit.eval()(image).patches, trained) and used == [1]
    other = copy.deepcopy(vit).train()
    assert isinstance(other.blocks, Stack) and other.blocks.compiled is None
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(other(image).patches, trained) and used == [1]
