"""The contract of methods: the rule of weight decay, and the average that follows."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unmask.methods.base import Method, Output, decay_groups, ema
from unmask.schedules import Progress

GOLDEN = Path(__file__).parent / "golden"


class Named(nn.Module):
    """A module that holds given tensors under any names."""

    def __init__(self, tensors, frozen=()):
        super().__init__()
        self.named = {k: nn.Parameter(v.clone(), requires_grad=k not in frozen) for k, v in tensors.items()}

    def named_parameters(self, prefix="", recurse=True, remove_duplicate=True):
        yield from self.named.items()


def weights(case):
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    return {k.split("/", 2)[2]: v for k, v in tensors.items() if k.startswith("weights/")}


def test_golden_decay_groups_are_maes():
    model = Named(weights("mae_forward"), frozen={"pos_embed", "decoder_pos_embed"})
    sidecar = json.loads((GOLDEN / "mae_finetune_param_groups.json").read_text())["outputs_json"]
    official = next(v for k, v in sidecar.items() if k.startswith("pretraining_groups"))
    expected = {name: group["weight_decay"] > 0 for group in official for name in group["params"]}
    groups = decay_groups(model)
    assert {name: group.decay for group in groups for name in group.names} == expected
    assert expected["cls_token"]
    assert expected["mask_token"]


def test_decay_groups_skip_frozen_biases_vectors_and_named_ones():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 5, 4)))
    model.register_parameter("logit_bias", nn.Parameter(torch.zeros(2, 2)))
    model[2].weight.requires_grad_(False)
    undecayed, decayed = decay_groups(model, skip={"pos_embed"})
    assert set(decayed.names) == {"0.weight", "logit_bias"}
    assert set(undecayed.names) == {"0.bias", "1.weight", "1.bias", "2.bias", "pos_embed"}
    for group in (undecayed, decayed):
        assert group.lr_scale == 1.0
        named = dict(model.named_parameters())
        assert all(named[n] is p for n, p in zip(group.names, group.parameters, strict=True))


def test_golden_ema_is_ibots():
    golden = load_file(GOLDEN / "ibot_utils.safetensors")
    momentum = json.loads((GOLDEN / "ibot_utils.json").read_text())["config"]["momentum"]
    teacher = Named({f"p{i}": golden[f"inputs/ema_teacher{i}"] for i in range(3)})
    student = Named({f"p{i}": golden[f"inputs/ema_student{i}"] for i in range(3)})
    ema(teacher, student, momentum)
    for i in range(3):
        torch.testing.assert_close(
            teacher.named[f"p{i}"].detach(), golden[f"outputs/ema_result{i}"], atol=1.5e-6, rtol=1e-5
        )


def test_ema_moves_only_common_names_and_no_buffer():
    source, average = nn.Module(), nn.Module()
    source.both, average.both = nn.Linear(2, 2), nn.Linear(2, 2)
    average.alone = nn.Linear(2, 2)
    source.register_buffer("seen", torch.ones(1))
    average.register_buffer("seen", torch.zeros(1))
    alone = copy.deepcopy(average.alone.weight)
    ema(average, source, 0.0)
    assert torch.equal(average.both.weight, source.both.weight)
    assert torch.equal(average.alone.weight, alone)
    assert average.seen == 0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996, 1.0])
def test_ema_keeps_a_fraction_of_momentum(momentum):
    average, source = nn.Linear(3, 3), nn.Linear(3, 3)
    before = average.weight.detach().clone()
    ema(average, source, momentum)
    torch.testing.assert_close(average.weight.detach(), momentum * before + (1 - momentum) * source.weight.detach())
    assert source.weight.grad is None


def test_ema_between_strangers_is_refused():
    with pytest.raises(ValueError, match="share no parameter"):
        ema(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), 0.9)


class Toy(Method):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def forward(self, batch, at):
        return Output(self.net(batch).mean(), {})


def test_a_methods_default_is_maes_groups_and_no_after_step():
    method, now = Toy(), Progress(0, 1, 1.0)
    assert [group.names for group in method.parameter_groups()] == [["net.bias"], ["net.weight"]]
    before = copy.deepcopy(method.state_dict())
    method.before_step(now)
    method.after_step(now, {})
    assert all(torch.equal(before[k], v) for k, v in method.state_dict().items())


@pytest.mark.parametrize("what", ["blocks", "backbone"])
def test_a_method_says_what_it_lacks(what):
    with pytest.raises(TypeError, match=f"Toy has no {what}"):
        getattr(Toy(), what)()
