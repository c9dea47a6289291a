"""Groups, schedules, clipping and LARS, against the official numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unmask.config import OptimConfig
from unmask.methods.base import Group
from unmask.optim import LARS, build_optimizer, clip_gradients, largest_divisor, set_schedules

GOLDEN = Path(__file__).parent / "golden"


def groups():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    return [Group(["bias"], [bias], decay=False), Group(["weight"], [weight], decay=True, lr_scale=0.5)]


def with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", LARS)])
def test_groups_keep_their_names_decay_and_scale(name, kind):
    optimizer = build_optimizer(groups(), OptimConfig(name=name))
    assert isinstance(optimizer, kind)
    assert [(g["names"], g["decay"], g["lr_scale"]) for g in optimizer.param_groups] == [
        (["bias"], False, 1.0),
        (["weight"], True, 0.5),
    ]


def test_adamw_has_the_configured_averages_and_no_decay_of_its_own():
    optimizer = build_optimizer(groups(), OptimConfig(betas=(0.8, 0.95), eps=1e-6))
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 1e-6, 0.0, 0.0)


def test_schedules_reach_every_group_by_its_scale_and_decay():
    optimizer = build_optimizer(groups(), OptimConfig())
    set_schedules(optimizer, 0.1, 0.04)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.1, 0.0), (0.05, 0.04)]


def test_empty_groups_are_left_out_and_nothing_to_train_is_refused():
    assert len(build_optimizer([Group([], [], decay=True), *groups()], OptimConfig()).param_groups) == 2
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer([Group([], [], decay=True)], OptimConfig())


@pytest.mark.parametrize(
    ("base_lr", "base_batch", "batch", "lr"), [(1.5e-4, 256, 4096, 2.4e-3), (1.5e-3, None, 2048, 1.5e-3)]
)
def test_the_rate_follows_the_batch_or_is_absolute(base_lr, base_batch, batch, lr):
    assert OptimConfig(base_lr=base_lr, base_batch=base_batch).lr(batch) == pytest.approx(lr)


def test_clipping_by_tensor_is_ibots():
    large, small = with_gradients(torch.full((2, 2), 10.0), torch.full((2,), 0.1))
    norm = clip_gradients([large, small], OptimConfig(clip=3.0, clip_by="tensor"))
    assert large.grad.norm() == pytest.approx(3.0)
    assert small.grad.norm() == pytest.approx(0.1414, abs=1e-4)
    assert float(norm) == pytest.approx(math.hypot(20, 0.02**0.5))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_global_clipping_is_torchs(scale):
    generator = torch.Generator().manual_seed(0)
    gradients = [scale * torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), (2, 2, 2))]
    ours, theirs = with_gradients(*gradients), with_gradients(*gradients)
    norm = clip_gradients(ours, OptimConfig(clip=3.0))
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, 3.0))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_without_a_limit_the_norm_is_measured_and_nothing_changes():
    parameters = [*with_gradients(torch.full((2, 2), 10.0)), nn.Parameter(torch.zeros(3))]  # one has none
    assert float(clip_gradients(parameters, OptimConfig())) == pytest.approx(20)
    assert parameters[0].grad.eq(10).all()


def test_golden_lars_steps_are_maes():
    golden = load_file(GOLDEN / "mae_lars.safetensors")
    sidecar = json.loads((GOLDEN / "mae_lars.json").read_text())
    given, rules = sidecar["config"], sidecar["tensors"]
    parameters = [nn.Parameter(golden[f"inputs/p{i}"].clone()) for i in range(4)]
    group = Group([f"p{i}" for i in range(4)], parameters, decay=True)
    optimizer = build_optimizer([group], OptimConfig(name="lars", momentum=given["momentum"]))
    set_schedules(optimizer, given["lr"], given["weight_decay"])
    for step in range(given["steps"]):
        for i, parameter in enumerate(parameters):
            parameter.grad = golden[f"inputs/g{step}_p{i}"].clone()
        optimizer.step()
        for i, parameter in enumerate(parameters):
            name = f"outputs/step{step}_p{i}"
            close = {"atol": rules[name]["suggested_atol"], "rtol": rules[name]["suggested_rtol"]}
            torch.testing.assert_close(parameter.detach(), golden[name], **close, msg=name)


def test_lars_leaves_parameters_without_gradient_alone():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([parameter], lr=1.0)
    optimizer.step()
    assert parameter.eq(1).all()
    assert not optimizer.state


def test_lars_decays_matrices_and_not_vectors():
    matrix, vector = with_gradients(torch.zeros(2, 2), torch.zeros(2))
    with torch.no_grad():
        matrix.fill_(1.0)
        vector.fill_(1.0)
    LARS([matrix, vector], lr=1.0, weight_decay=0.1).step()
    assert matrix.lt(1).all()
    assert vector.eq(1).all()


@pytest.mark.parametrize(("n", "limit", "expected"), [(64, 64, 64), (64, 63.9, 32), (60, 7, 6), (7, 6, 1), (8, 0, 1)])
def test_largest_divisor_stays_within_its_limit(n, limit, expected):
    assert largest_divisor(n, limit) == expected
