"""Learning from labels: soft targets, groups, moving average, the contract, exact resume, two processes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import toys
from toys import ALONE, Images

from unmask import checkpoint
from unmask.data.record import Record
from unmask.methods.base import Batch, Progress
from unmask.methods.classify import Classify, ClassifyConfig, binary_cross_entropy, soft_cross_entropy, soft_targets
from unmask.mixing import Mix
from unmask.optim import build_optimizer
from unmask.randaugment import RandAugment
from unmask.run import Run
from unmask.testing import check_method
from unmask.testing.processes import on_processes
from unmask.views import View
from unmask.vit import ViTConfig

VIT = ViTConfig(image_size=16, patch=4, width=32, depth=2, heads=2, classes=3, pool="mean")
VIEW = View(16, scale=(0.2, 1.0), randaugment=RandAugment(), erase=0.5, mix=Mix(share=4))
TINY = ClassifyConfig(vit=VIT, views=(VIEW,), layer_decay=0.75, average=0.9)
AT = Progress(0, 10, 5.0)


class Labelled(Images):
    """Toy images of three classes."""

    classes = ["a", "b", "c"]

    def __init__(self, n=24):
        super().__init__(n)
        self.labels = np.arange(n) % 3

    def __getitem__(self, i):
        record = super().__getitem__(i)
        return Record(record.data, int(self.labels[i]), record.key)


def test_classify_conforms():
    check_method(TINY, other=dataclasses.replace(TINY, vit=dataclasses.replace(VIT, pool="cls", drop_path=0.1)))


def test_a_target_is_smoothed_once_and_mixed_with_the_neighbor_s():
    label, own = torch.tensor([0, 2]), torch.tensor([0.75, 0.75])
    target = soft_targets(label, own, 4, 0.1)
    first = [0.75 * 0.925 + 0.25 * 0.025, 0.025, 0.75 * 0.025 + 0.25 * 0.925, 0.025]
    torch.testing.assert_close(target[0], torch.tensor(first))
    torch.testing.assert_close(target.sum(1), torch.ones(2))


def test_unmixed_hard_targets_give_the_cross_entropy():
    logits, label = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    ours = soft_cross_entropy(logits, soft_targets(label, None, 4, 0.0))
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, label))
    smoothed = soft_cross_entropy(logits, soft_targets(label, None, 4, 0.1))
    torch.testing.assert_close(smoothed, torch.nn.functional.cross_entropy(logits, label, label_smoothing=0.1))


def test_a_fresh_fine_tuning_head_says_nothing_yet():
    method = Classify(dataclasses.replace(TINY, head_std=2e-5))
    batch = Batch(views=(torch.randn(6, 3, 16, 16),), label=torch.zeros(6, dtype=torch.int64))
    assert float(method(batch, AT).loss.detach()) == pytest.approx(math.log(3), abs=1e-3)
    assert float(method.vit.head.weight.detach().std()) == pytest.approx(2e-5, rel=0.3)


def test_layers_learn_the_slower_the_nearer_to_the_pixels():
    scales = {n: g.lr_scale for g in Classify(TINY).parameter_groups() for n in g.names}
    assert scales["vit.patch_embed.proj.weight"] == pytest.approx(0.75**3)
    assert scales["vit.blocks.1.mlp.fc1.weight"] == pytest.approx(0.75)
    assert scales["vit.head.weight"] == scales["vit.fc_norm.weight"] == 1
    undecayed = {n for g in Classify(TINY).parameter_groups() if not g.decay for n in g.names}
    assert {"vit.cls_token", "vit.pos_embed", "vit.head.bias", "vit.fc_norm.weight"} <= undecayed


def test_the_network_to_use_is_the_moving_average():
    method = Classify(TINY)
    before = method.averaged.head.weight.clone()
    with torch.no_grad():
        method.vit.head.weight.add_(1.0)
    method.after_step(AT, {})
    assert method.backbone() is method.averaged
    torch.testing.assert_close(method.averaged.head.weight, before + 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": (View(16), View(16))}, "one view"),
        ({"views": (View(32),)}, "expects 16"),
        ({"vit": dataclasses.replace(VIT, classes=1)}, "at least two classes"),
    ],
)
def test_a_config_that_cannot_learn_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Classify(dataclasses.replace(TINY, **changes))


def test_an_odd_micro_batch_cannot_be_mixed(tmp_path):
    with pytest.raises(ValueError, match="micro-batch of 3 is odd"):
        toys.run(tmp_path / "odd", method=TINY, source=Labelled(), batch=6, device_batch=3)


def trained(path, steps=6, **changes):
    run = toys.run(path, method=changes.pop("method", TINY), source=Labelled(), steps=steps, **changes)
    return run.method().state_dict()


def test_going_on_is_exact(tmp_path):
    whole = trained(tmp_path / "whole")
    toys.run(tmp_path / "parts", method=TINY, source=Labelled(), steps=6, save_every="2")
    for step in (6, 4):
        checkpoint.remove(tmp_path / "parts", step)
    assert Run(tmp_path / "parts").latest() == 2
    assert toys.same(dict(whole), dict(trained(tmp_path / "parts", save_every="2")))


def test_a_step_is_the_same_in_micro_batches(tmp_path):
    """Mixing included: partners are neighbors, draws are named by positions."""
    whole = trained(tmp_path / "whole", base_lr=1e-3)
    parts = trained(tmp_path / "parts", base_lr=1e-3, device_batch=2)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=1e-3)


def on_two(world, path):
    run = toys.run(path, world=world, method=TINY, source=Labelled(), steps=4, device_batch=4, base_lr=1e-3)
    return {k: v.numpy() for k, v in run.method().state_dict().items()} if world.first else None


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    one = trained(tmp_path / "one", steps=4, base_lr=1e-3, device_batch=4)
    two, _ = on_processes(on_two, 2, tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(torch.from_numpy(two[name]), value, atol=2e-5, rtol=1e-3, msg=name)


def test_groups_go_through_the_optimizer_with_their_names():
    method = Classify(TINY)
    optimizer = build_optimizer(method.parameter_groups(), toys.config("x").optim)
    named = {n for g in optimizer.param_groups for n in g["names"]}
    assert named == {n for n, p in method.named_parameters() if p.requires_grad}
    assert ALONE.size == 1


def test_the_sigmoid_loss_asks_of_each_class_and_starts_from_none():
    method = ClassifyConfig(vit=VIT, views=(VIEW,), loss="sigmoid", head_bias=-10.0, smoothing=0.0).build()
    assert (method.vit.head.bias == -10).all()
    logits, target = torch.tensor([[0.0, 2.0], [-10.0, -10.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    by_hand = (math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-10)) + math.log(1 + math.exp(10))) / 2
    assert binary_cross_entropy(logits, target).item() == pytest.approx(by_hand, rel=1e-6)
    assert binary_cross_entropy(logits, target) > soft_cross_entropy(logits, target)
