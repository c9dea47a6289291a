"""Golden cases of the official iBOT: backbone, head, helpers, masks and k-NN; its training is in `ibot_training`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn

from ..blocks import DropPath, add
from ..config import OptimConfig
from ..evaluate.knn import KNN
from ..masks import BlockMask, ScatterMask
from ..methods.base import Method, Progress, ema
from ..methods.ibot import IBOT
from ..methods.ibot_head import Head
from ..optim import clip_gradients
from ..schedules import StepCosine
from ..vit import ViT
from ..weights.ibot import from_official, to_official, vit_from_official
from .draws import PythonDraws, population
from .ibot_training import build, prefixed, together, vit_config

if TYPE_CHECKING:
    from .goldens import Case

Produced = dict[str, "Tensor | float"]
WRONG = float("inf")


@torch.no_grad()
def backbone(case: Case) -> Produced:
    """All tokens with and without masks, at other sizes, between blocks, and the mean-pooling model."""
    config = vit_config(case.config["model"])
    vit = ViT(replace(config, mask_token=True)).eval()
    vit.load_state_dict(vit_from_official(case.weights["backbone"]))
    image, mask = case.inputs["imgs"], case.inputs["mask"].flatten(1)
    tokens = vit(image)
    out: Produced = {
        "tokens_masked": together(vit(image, hidden=mask)),
        "prepared_masked": vit.embed(image, hidden=mask)[0],
        "tokens_unmasked": together(tokens),
        "cls_unmasked": tokens.prefix[:, 0],
        "last_selfattention": vit.attention(image, layers=(config.depth - 1,))[0],
    }
    counts = [int(name.partition("of_last")[2]) for name in case.outputs if "of_last" in name]
    for n in set(counts):
        for i, between in enumerate(vit(image, layers=tuple(range(config.depth - n, config.depth)))):
            out[f"intermediate{i}_of_last{n}"] = vit.norm(together(between))
    for name, images in case.inputs.items():
        size = name.removeprefix("imgs_")
        if name.startswith("imgs_") and size != "mean":
            out[f"tokens_{size}"] = together(vit(images))
            height, width = (int(side) for side in size.split("x"))
            positions = vit.positions((height // config.patch_hw[0], width // config.patch_hw[1]))
            assert positions is not None  # iBOT's are learned
            out[f"pos_{size}"] = positions
    if "mean" in case.config:
        vit = ViT(replace(vit_config(case.config["mean"]), classes=1, pool="mean")).eval()
        vit.head = nn.Identity()  # official mean pooling has its fc_norm without a classifier
        vit.load_state_dict(vit_from_official(case.weights["backbone_mean_pooling"]))
        tokens = together(vit(case.inputs["imgs_mean"]))
        tokens[:, 0] = out["mean_pooling_cls"] = vit.logits(case.inputs["imgs_mean"])
        out["mean_pooling_tokens"] = tokens
    return out


def build_head(config: dict[str, Any], shared: bool, unit: bool) -> Head:
    """Our head for an official `iBOTHead`."""
    return Head(
        config["in_dim"],
        config["out_dim"],
        None if shared else config["patch_out_dim"],
        hidden=config["hidden_dim"],
        bottleneck=config["bottleneck_dim"],
        layers=config["nlayers"],
        act=config["act"],
        norm=config["norm"] or "none",
        unit=unit,
    )


def head_from_official(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head's own keys, through the map of whole checkpoints."""
    state = from_official({"student": prefixed(weights, "module.head."), "teacher": {}})
    return {name.removeprefix("student.head."): value for name, value in state.items()}


def head_to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `head_from_official`."""
    official = to_official(prefixed(state, "teacher.head."))["teacher"]
    return {name.removeprefix("head."): value for name, value in official.items()}


def head(case: Case) -> Produced:
    """Logits and gradients of shared and separate heads."""
    out: Produced = {}
    for group, weights in case.weights.items():
        net = build_head(case.config, group == "shared_true", case.config["norm_last_layer"])
        net.load_state_dict(head_from_official(weights))
        cls, patch = net(case.inputs["tokens"])
        out |= {f"cls_{group}": cls, f"patch_{group}": patch}
        cotangent = case.inputs[f"cot_cls_{group}"], case.inputs[f"cot_patch_{group}"]
        ((cls * cotangent[0]).sum() + (patch * cotangent[1]).sum()).backward()
        grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        out |= prefixed(head_to_official(grads), f"grad_{group}/")
        out[f"out2d_{group}"] = net.cls(net.embed(case.inputs["cls2d"]))
    return out


class Toy(Method):
    """Named parameters in a list, for helpers that take tensors."""

    def __init__(self, tensors: list[Tensor]):
        super().__init__()
        self.p = nn.ParameterList(tensors)


def utils(case: Case) -> Produced:
    """Schedules, moving average, clipping, drop path, decay groups and the frozen last layer."""
    config, given = case.config, case.inputs
    out: Produced = {}
    for i, (base, final, epochs, each, warmup, start) in enumerate(config["sched"]):
        schedule, n = StepCosine(base, warmup, final, start), epochs * each
        values = [schedule(Progress(step, n, each)) for step in range(n)]
        out[f"cosine_{i}"] = torch.tensor(values, dtype=torch.float64)

    count = sum(name.startswith("ema_teacher") for name in given)
    teacher, student = (Toy([given[f"ema_{who}{i}"] for i in range(count)]) for who in ("teacher", "student"))
    ema(teacher, student, config["momentum"])
    out |= {f"ema_result{i}": p.detach() for i, p in enumerate(teacher.p)}

    grads = [given[f"clip_grad{i}"] for i in range(sum(name.startswith("clip_grad") for name in given))]
    clipped = Toy([torch.zeros_like(grad) for grad in grads])
    optim = OptimConfig(clip=config["clip"], clip_by="tensor")
    norms = []
    for i, (parameter, grad) in enumerate(zip(clipped.p, grads, strict=True)):
        parameter.grad = grad.clone()
        norms.append(clip_gradients([parameter], optim))
        out[f"clip_result{i}"] = parameter.grad
    out["clip_norms"] = torch.stack(norms)

    def fed(tensor: Tensor, keep: float) -> Tensor:
        return tensor.copy_((keep + given["droppath_rand"]).floor().flatten())

    with mock.patch.object(torch.Tensor, "bernoulli_", fed):
        x = given["droppath_x"]
        out["droppath_out"] = add(torch.zeros_like(x), x, DropPath(config["drop_path"])(x))

    method = build({**config, "norm_last_layer": config["head"]["norm_last_layer"], "shared_head": config["shared"]})
    ours = {name: group.decay for group in method.parameter_groups() for name in official_names(method, group.names)}
    groups = case.outputs_json.get("params_groups", [])
    expected = {name: "weight_decay" not in group for group in groups for name in group["params"]}
    out["params_groups"] = 0.0 if not groups or ours == expected else WRONG
    for epoch, result in case.outputs_json.get("cancel_gradients", {}).items():
        names = dict(method.student.named_parameters(remove_duplicate=False))
        for parameter in names.values():
            parameter.grad = torch.ones_like(parameter)  # of frozen ones too, as the original's test does
        method.before_step(Progress(int(epoch.removeprefix("epoch")), 10, 1.0))
        cleared = set(official_names(method, [f"student.{n}" for n, p in names.items() if p.grad is None]))
        out[f"cancel_gradients({epoch})"] = 0.0 if cleared == set(result["grad_set_to_None"]) else WRONG
    return out


def official_names(method: IBOT, names: list[str]) -> list[str]:
    """Official names of the student's parameters, each once, without `module.`."""
    state = {name: torch.zeros(1, 1, 1) for name in names}
    named = to_official(state)["student"]
    once = [name.removeprefix("module.") for name in named]
    shared = method.student.head.patch_layer is None
    return [name for name in once if not (shared and "last_layer2." in name)]


def loader_masks(case: Case) -> Produced:
    """The original's own masks from its draws, and how often it hides each place."""
    out: Produced = {}
    for name, g in case.config["generators"].items():
        mean, spread = g["pred_ratio"], g["pred_ratio_var"]
        many = isinstance(mean, list)
        ratios = tuple(zip(mean, spread, strict=True)) if many else ((mean, spread),)
        policy = BlockMask(ratios=ratios, smallest=None) if g["pred_shape"] == "block" else ScatterMask(ratios)
        draws, grid = PythonDraws(g["seed"]), tuple(g["grid"])
        masks = [torch.from_numpy(policy(grid, draws)) for _ in range(case.config["draws"])]
        out[f"masks_{name}"] = torch.stack(masks)
        out[f"population_freq_{name}"] = population(policy, grid, case.outputs[f"population_freq_{name}"], case.config)
    return out


def knn(case: Case) -> Produced:
    """Votes and predictions of the weighted k-NN classifier."""
    given, config = case.inputs, case.config
    train, test = given["train_features_raw"], given["test_features_raw"]
    truth = given["test_labels"]
    out: Produced = {}
    fitted = KNN(temperature=config["T"], k=min(config["ks"])).fit(train, given["train_labels"], config["num_classes"])
    out["train_features"] = fitted.bank
    out["test_features"] = KNN(k=1).fit(test, truth, config["num_classes"]).bank
    for k, votes in fitted.votes_for(test, config["ks"]).items():
        predicted = votes.argmax(1)
        out |= {f"votes_k{k}": votes, f"predictions_k{k}": predicted}
        expected = case.outputs_json.get(f"k{k}", {}).get("top1")
        top1 = 100 * float((predicted == truth).double().mean())
        out[f"top1_k{k}"] = 0.0 if expected is None or math.isclose(top1, expected, rel_tol=1e-9) else WRONG
    return out
