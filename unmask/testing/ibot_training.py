"""Golden cases of the official iBOT's training: the loss over consecutive calls, and a trajectory of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import DataConfig, OptimConfig, RunConfig
from ..masks import BlockMask
from ..methods.base import Batch, Progress
from ..methods.ibot import IBOT, IBOTConfig
from ..optim import build_optimizer
from ..parallel import World
from ..schedules import StepCosine
from ..step import update
from ..views import View
from ..vit import Tokens, ViTConfig
from ..weights.ibot import from_official, to_official

if TYPE_CHECKING:
    from .goldens import Case

Produced = dict[str, "Tensor | float"]


def vit_config(model: dict[str, Any]) -> ViTConfig:
    """Our configuration of an official `VisionTransformer`."""
    size = model["img_size"]
    return ViTConfig(
        image_size=size if isinstance(size, int) else size[0],  # the original reads the first one
        patch=model["patch_size"],
        channels=model.get("in_chans", 3),
        width=model["embed_dim"],
        depth=model["depth"],
        heads=model["num_heads"],
        mlp_ratio=model["mlp_ratio"],
        pos_resize="factor",
        qkv_bias="full" if model.get("qkv_bias", True) else "none",
        layer_scale=model.get("init_values") or None,
        drop_path=model.get("drop_path_rate", 0.0),
    )


def together(tokens: Tokens) -> Tensor:
    """All tokens, the class token first, as the original returns them."""
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors under longer names."""
    return {prefix + name: value for name, value in state.items()}


def build(config: dict[str, Any]) -> IBOT:
    """Our iBOT for the `model`, `head` and options of a case."""
    head_config, vit = config["head"], vit_config(config["model"])
    locals_ = config.get("local_crops_number", 0)
    globals_ = config.get("global_crops_number", 2)
    warm = config.get("warmup_teacher_temp_epochs", 30)
    return IBOTConfig(
        vit=vit,
        views=(
            View(vit.image_size, count=globals_),
            *([View(config["local_size"], count=locals_)] if locals_ else []),
        ),
        masks=(BlockMask(),) * globals_,
        globals=globals_,
        prototypes=head_config["out_dim"],
        patch_prototypes=head_config["patch_out_dim"],
        shared_head=config.get("shared_head", True),
        shared_head_teacher=config.get("shared_head_teacher"),
        head_width=head_config["hidden_dim"],
        head_layers=head_config["nlayers"],
        head_act=head_config["act"],
        head_norm=head_config["norm"] or "none",
        bottleneck=head_config["bottleneck_dim"],
        norm_last_layer=config["norm_last_layer"],
        warmup_temperature=config.get("warmup_teacher_temp", 0.04),
        teacher_temperature=config.get("teacher_temp", 0.07),
        patch_warmup_temperature=config.get("warmup_teacher_patch_temp", 0.04),
        patch_teacher_temperature=config.get("teacher_patch_temp", 0.07),
        warmup_temperature_epochs=warm,
        patch_start_epoch=config.get("pred_start_epoch", 0),
        momentum=config.get("momentum_teacher", 0.996),
        cls_weight=config.get("lambda1", 1.0),
        patch_weight=config.get("lambda2", 1.0),
        freeze_last_layer=config["freeze_last_layer"],
    ).build()


def loss(case: Case) -> Produced:
    """Consecutive calls: both losses and their gradients, then the centers; the temperature schedules."""
    config = case.config
    separate = config["out_dim"] != config["patch_out_dim"]
    globals_, locals_ = config["ngcrops"], config["nlcrops"]
    ibot = IBOTConfig(
        vit=ViTConfig(image_size=config["grid"], patch=1, width=4, depth=1, heads=1, pos_resize="factor"),
        views=(View(config["grid"], count=globals_), *([View(config["grid"], count=locals_)] if locals_ else [])),
        masks=(BlockMask(),) * globals_,
        globals=globals_,
        prototypes=config["out_dim"],
        patch_prototypes=config["patch_out_dim"],
        shared_head=not separate,
        head_width=4,
        bottleneck=4,
        warmup_temperature=config["warmup_teacher_temp"],
        teacher_temperature=config["teacher_temp"],
        patch_warmup_temperature=config["warmup_teacher_temp2"],
        patch_teacher_temperature=config["teacher_temp2"],
        warmup_temperature_epochs=config["warmup_teacher_temp_epochs"],
        patch_start_epoch=config["mim_start_epoch"],
        student_temperature=case.outputs_json.get("student_temp", 0.1),
        center_momentum=case.outputs_json.get("center_momentum", 0.9),
        patch_center_momentum=case.outputs_json.get("center_momentum2", 0.9),
        cls_weight=config["lambda1"],
        patch_weight=config["lambda2"],
    ).build()
    ibot.mask_start = 0  # this case gives its masks itself; the loss scores what it is given
    ibot.center.copy_(case.inputs["init_center"].flatten())
    ibot.patch_center.copy_(case.inputs["init_center2"].flatten())
    steps = [Progress(epoch, config["nepochs"], 1.0) for epoch in range(config["nepochs"])]
    temperatures = torch.tensor([ibot.config.temperatures(at) for at in steps], dtype=torch.float64)
    out: Produced = {"teacher_temp_schedule": temperatures[:, 0], "teacher_temp2_schedule": temperatures[:, 1]}
    for call, epoch in enumerate(config["epochs_called"]):
        given = {n.removesuffix(f"_{call}"): v.clone() for n, v in case.inputs.items() if n.endswith(f"_{call}")}
        student = {name: v.requires_grad_() for name, v in given.items() if name.startswith("student")}
        cls = [student["student_cls"], *(v for name, v in student.items() if "local" in name)]
        masks = tuple(given[f"mask{i}"].flatten(1) for i in range(globals_))
        views = tuple(torch.zeros(len(mask), 3, 1, 1) for mask in masks)
        batch = Batch(views=views, masks=masks, hidden=tuple(m.flatten().nonzero().flatten() for m in masks))
        _, hidden, weight = ibot.hide(batch, steps[epoch])
        b = len(masks[0])
        both, metrics, _ = ibot.loss(
            (torch.cat(cls).unflatten(0, (-1, b)), student["student_patch"].flatten(0, 1)[hidden]),
            (given["teacher_cls"].unflatten(0, (-1, b)), given["teacher_patch"].flatten(0, 1)[hidden]),
            weight,
            steps[epoch],
        )
        both.backward()
        out |= {f"grad_{name}_{call}": v.grad for name, v in student.items() if v.grad is not None}
        out |= {f"cls_{call}": metrics["loss_cls"], f"patch_{call}": metrics["loss_patch"], f"loss_{call}": both}
        images = torch.tensor(float(len(given["teacher_cls"])))
        patch_sum = given["teacher_patch"].mean(1).sum(0)
        ibot.update_centers({"cls": given["teacher_cls"].sum(0), "patch": patch_sum, "images": images})
        centers = to_official(ibot.state_dict())["ibot_loss"]
        out[f"center_after_{call}"] = centers["center"].clone()
        out[f"center2_after_{call}"] = centers["center2"].clone()
    return out


def trajectory(case: Case) -> Produced:
    """Training steps through our own groups, optimizer, losses, teacher, centers and `train.update`."""
    config = case.config
    method = build(config)
    method.mask_start = 0  # the case gives the masks of every step; in the original its loader holds them back
    method.load_state_dict(method.state_dict() | from_official(case.weights))  # the centers start at 0
    each, n = config["iters_per_epoch"], config["epochs"] * config["iters_per_epoch"]
    optim = OptimConfig(
        base_lr=config["lr"],
        base_batch=None,
        schedule="constant",
        betas=(0.9, 0.999),
        weight_decay=config["weight_decay"],
        weight_decay_end=config["weight_decay_end"],
        clip=config["clip_grad"] or None,
        clip_by="tensor",
    )
    run = RunConfig(
        recipe="golden", method=method.config, data=DataConfig(), optim=optim, batch=config["batch"], precision="fp32"
    )
    optimizer = build_optimizer(method.parameter_groups(), optim)
    names = {p: name for name, p in method.named_parameters()}
    arrived: dict[str, Tensor] = {}
    clipped: dict[str, Tensor] = {}
    for parameter, name in names.items():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: arrived.__setitem__(name, p.grad.clone())  # before clipping
            )
    optimizer.register_step_pre_hook(
        lambda *_: clipped.update({name: p.grad.clone() for p, name in names.items() if p.grad is not None})
    )

    crops, masks = case.inputs["global_crops"], case.inputs["masks"].flatten(-2)
    local = next((v for name, v in case.inputs.items() if "local" in name), None)
    out: Produced = {}
    with torch.no_grad():
        image, mask = crops[0].flatten(0, 1), masks[0].flatten(0, 1)
        method.train()
        for who, network, hidden in (("teacher", method.teacher, None), ("student", method.student, mask)):
            cls, patch = network.head(together(network.vit(image, hidden=hidden)))
            out |= {f"step0_{who}_cls": cls, f"step0_{who}_patch": patch}

    losses, norms, centers, decays, momenta = [], [], [], [], []
    for step in range(n):
        at = Progress(step, n, each)
        batch = Batch(
            views=(*crops[step], *(() if local is None else local[step])),
            masks=tuple(masks[step]),
            hidden=tuple(m.flatten().nonzero().flatten() for m in masks[step]),
        )
        result = update(method, optimizer, [batch], at, run, World(0, 1, crops.device))
        losses.append(torch.stack([result.loss, result.metrics["loss_cls"], result.metrics["loss_patch"]]))
        official = to_official(arrived)["student"]
        norms.append(torch.stack([official[name].norm() for name in case.outputs_json["clip_norms_order"]]))
        now = to_official({k: v.clone() for k, v in method.state_dict().items()})
        centers.append(now["ibot_loss"])
        decays.append(next(g["weight_decay"] for g in optimizer.param_groups if g["decay"]))
        momenta.append(StepCosine(method.config.momentum, 0.0, method.config.momentum_end)(at))
        if step == 0:
            out |= prefixed(to_official(clipped)["student"], "grad_step0_clipped/")
            out |= prefixed(now["student"], "student_after_step1/") | prefixed(now["teacher"], "teacher_after_step1/")
    now = to_official(method.state_dict())
    out |= prefixed(now["student"], "final_student/") | prefixed(now["teacher"], "final_teacher/")
    return {
        **out,
        "losses": torch.stack(losses),
        "clip_norms": torch.stack(norms),
        "centers": torch.stack([c["center"] for c in centers]),
        "centers2": torch.stack([c["center2"] for c in centers]),
        "wd_schedule": torch.tensor(decays, dtype=torch.float64),
        "momentum_schedule": torch.tensor(momenta, dtype=torch.float64),
    }
