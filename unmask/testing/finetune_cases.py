"""Golden cases of MAE's fine-tuning and linear probing: classifiers, layer decay, schedule, LARS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config import OptimConfig
from ..methods.base import Group
from ..methods.classify import Classify, ClassifyConfig
from ..optim import build_optimizer, set_schedules
from ..schedules import Progress, WarmupCosine
from ..views import View
from ..vit import ViTConfig
from .mae_cases import Produced

if TYPE_CHECKING:
    from .goldens import Case


def build(model: dict[str, Any], mean_pooled: bool, config: dict[str, Any], layer_decay: float = 1.0) -> Classify:
    """Our classifier for the official `models_vit.VisionTransformer`, as fine-tuning builds it."""
    vit = ViTConfig(
        image_size=model["img_size"],
        patch=model["patch_size"],
        channels=model.get("in_chans", 3),
        width=model["embed_dim"],
        depth=model["depth"],
        heads=model["num_heads"],
        mlp_ratio=model["mlp_ratio"],
        qkv_bias="full" if config.get("qkv_bias", True) else "none",
        norm_eps=config.get("layer_norm_eps", 1e-6),
        classes=model["num_classes"],
        pool="mean" if mean_pooled else "cls",
    )
    view = View(vit.image_size)
    return ClassifyConfig(vit=vit, views=(view,), layer_decay=layer_decay, head_std=2e-5).build()


@torch.no_grad()
def classifier(case: Case) -> Produced:
    """Features and logits with the class token, and with fc_norm of the mean patch."""
    out: Produced = {}
    for group, mean_pooled in (("global_pool_false", False), ("global_pool_true", True)):
        vit = build(case.config["model"], mean_pooled, case.config).vit
        vit.load_state_dict(case.weights[group])
        image = case.inputs["imgs"]
        tokens = vit(image)
        pooled = tokens.patches.mean(1) if mean_pooled else tokens.prefix[:, 0]
        name = "gp_true" if mean_pooled else "gp_false"
        out[f"features_{name}"], out[f"logits_{name}"] = vit.fc_norm(pooled), vit.logits(image)
    return out


def param_groups(case: Case) -> Produced:
    """Rate scale and weight decay of every parameter, and the schedule on fractional epochs."""
    config, groups = case.config, case.outputs_json
    method = build(config["model"], config["global_pool"], config, config["layer_decay"])
    ours = [g._replace(names=[n.removeprefix("vit.") for n in g.names]) for g in method.parameter_groups()]
    decay = config["weight_decay"]
    flat = {n: (g.lr_scale, decay if g.decay else 0.0) for g in ours for n in g.names}
    order = groups["parameter_order"]
    schedule = WarmupCosine(config["base_lr"], config["warmup_epochs"], config["min_lr"])
    per_epoch = 1000  # steps; the golden epochs are fractions
    epochs = case.outputs["sched_epochs"]
    steps = [Progress(round(float(e) * per_epoch), config["epochs"] * per_epoch, per_epoch) for e in epochs]
    rates = [schedule(at) for at in steps]
    optimizer = build_optimizer(ours, OptimConfig(betas=(0.9, 0.999)))
    rows = []
    for rate in rates:
        set_schedules(optimizer, rate, decay)
        ours_by_name = {n: g["lr"] for g in optimizer.param_groups for n in g["names"]}
        first = {}  # the official groups come in the order in which their first parameter does
        for name in order:
            first.setdefault(groups["per_parameter"][name]["group"], ours_by_name[name])
        rows.append([first[i] for i in sorted(first)])
    return {
        "lr_scale": torch.tensor([flat[n][0] for n in order], dtype=torch.float64),
        "weight_decay": torch.tensor([flat[n][1] for n in order], dtype=torch.float64),
        "sched_epochs": torch.tensor([at.epoch for at in steps], dtype=torch.float64),
        "sched_base_lr": torch.tensor(rates, dtype=torch.float64),
        "sched_group_lr": torch.tensor(rows, dtype=torch.float64),
    }


def lars(case: Case) -> Produced:
    """LARS steps on given gradients: matrices with a trust ratio, vectors without, zeros unharmed."""
    config = case.config
    names = sorted(name for name in case.inputs if "_" not in name)
    parameters = [nn.Parameter(case.inputs[name].clone()) for name in names]
    rule = OptimConfig(name="lars", momentum=config["momentum"])
    groups = [Group(names, parameters, decay=True)]
    optimizer = build_optimizer(groups, rule)
    out: Produced = {}
    for step in range(config["steps"]):
        for name, parameter in zip(names, parameters, strict=True):
            parameter.grad = case.inputs[f"g{step}_{name}"].clone()
        set_schedules(optimizer, config["lr"], config["weight_decay"])
        optimizer.step()
        out |= {f"step{step}_{n}": p.detach().clone() for n, p in zip(names, parameters, strict=True)}
    return out
