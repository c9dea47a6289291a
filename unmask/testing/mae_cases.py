"""Golden cases of the official MAE: forward pass, positions, and a training trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import DataConfig, OptimConfig, RunConfig
from ..masks import RandomMask, keep_count, shuffle
from ..methods.base import Batch, Progress
from ..methods.mae import MAE, MAEConfig, patchify, unpatchify
from ..optim import build_optimizer
from ..parallel import World
from ..positions import resize_pos_embed, sincos_2d
from ..step import update
from ..views import View
from ..vit import ViTConfig
from ..weights.mae import from_official, to_official

if TYPE_CHECKING:
    from .goldens import Case

Produced = dict[str, "Tensor | float"]


def build(config: dict[str, Any], weights: dict[str, Tensor]) -> MAE:
    """Our MAE with the official weights of a case."""
    model = config["model"]
    size, patch = model["img_size"], model["patch_size"]
    vit = ViTConfig(
        image_size=size if isinstance(size, int) else tuple(size),
        patch=patch if isinstance(patch, int) else tuple(patch),
        channels=model["in_chans"],
        width=model["embed_dim"],
        depth=model["depth"],
        heads=model["num_heads"],
        mlp_ratio=model["mlp_ratio"],
        pos_embed="sincos",
        norm_eps=config.get("layer_norm_eps", 1e-6),
        init="mae",
    )
    method = MAEConfig(
        vit=vit,
        views=(View(vit.image_size),),
        masks=(RandomMask(config["mask_ratio"]),),
        decoder_width=model["decoder_embed_dim"],
        decoder_depth=model["decoder_depth"],
        decoder_heads=model["decoder_num_heads"],
        norm_pixels=config.get("norm_pix_loss", False),
    ).build()
    method.load_state_dict(from_official(weights))
    return method


def forward(case: Case) -> Produced:
    """One forward pass, visible patches in the official, shuffled order."""
    (weights,) = case.weights.values()
    mae = build(case.config, weights)
    image, noise = case.inputs["imgs"], case.inputs["noise"]
    ids = shuffle(noise, keep_count(noise.shape[1], case.config["mask_ratio"]))
    out: dict[str, Any] = {
        "ids_shuffle": ids.ids_shuffle,
        "ids_keep": ids.ids_keep,
        "ids_restore": ids.ids_restore,
        "mask": ids.mask.float(),
    }

    def watch(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda _module, _args, value: out.__setitem__(name, value))

    for i, block in enumerate(mae.encoder.blocks):
        watch(f"encoder_block{i}", block)
    for i, block in enumerate(mae.decoder.blocks):
        watch(f"decoder_block{i}", block)
    with torch.no_grad():
        latent = mae.encoder(image, keep=ids.ids_keep)
        pixels = mae.decoder(latent, ids.ids_keep)
        out["patch_embed"] = mae.encoder.patch_embed(image)
        out["latent"] = torch.cat([latent.prefix, latent.patches], dim=1)
        out["pred"] = pixels
        out["target_patches"] = patchify(image, mae.patch)
        out["unpatchified_pred"] = unpatchify(pixels, mae.patch, latent.grid)
        for name, norm_pixels in (("loss_plain", False), ("loss_norm_pix", True)):
            mae.norm_pixels = norm_pixels
            out[name] = mae.loss(image, pixels, ids.mask)
    for setting, keep in case.outputs_json.get("len_keep_table (official int(L*(1-ratio)))", {}).items():
        length, _, ratio = setting.removeprefix("L=").partition(",ratio=")
        out[f"len_keep({setting})"] = 0.0 if keep_count(int(length), float(ratio)) == keep else float("inf")
    return out


def pos_embed(case: Case) -> Produced:
    """Sin-cos tables in both precisions, and the resize of a learned table."""
    out: Produced = {}
    for width, side, cls in case.config["sincos"]:
        table = torch.from_numpy(sincos_2d(width, (side, side), prefix=int(cls)))
        name = f"sincos_d{width}_g{side}_cls{int(cls)}"
        out[name], out[f"{name}_f64"] = table.float(), table
    rule = case.config["interp"]
    table, source, target = case.inputs["ckpt_pos_embed"], rule["src"], rule["dst"]
    out["interpolated_pos_embed"] = resize_pos_embed(table, (source, source), (target, target), "size")
    return out


def trajectory(case: Case) -> Produced:
    """Training steps through our own groups, optimizer, loss and `train.update`."""
    config = case.config
    (weights,) = case.weights.values()
    mae = build(config, weights)
    optim = OptimConfig(
        base_lr=config["lr"],
        base_batch=None,
        schedule="constant",
        betas=tuple(config["betas"]),
        eps=config["eps"],
        weight_decay=config["weight_decay"],
        clip=config["clip_grad"],
    )
    accumulate = config.get("accum_iter", 1)
    run = RunConfig(
        recipe="golden",
        method=mae.config,
        data=DataConfig(),
        optim=optim,
        batch=config["batch"],
        precision="fp32",
    )
    optimizer = build_optimizer(mae.parameter_groups(), optim)
    world = World(0, 1, case.inputs["imgs"].device)
    out: Produced = {}
    seen: dict[str, Tensor] = {}
    for name, parameter in mae.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: seen.__setitem__(name, p.grad.clone())  # as the optimizer gets it
            )
    losses, norms = [], []
    for step in range(config["steps"]):
        image, noise = case.inputs["imgs"][step], case.inputs["noise"][step]
        mask = shuffle(noise, keep_count(noise.shape[1], config["mask_ratio"])).mask
        micro = zip(image.chunk(accumulate), mask.chunk(accumulate), strict=True)
        batches = [Batch(views=(x,), masks=(m,), hidden=(m.flatten().nonzero().flatten(),)) for x, m in micro]
        result = update(mae, optimizer, batches, Progress(step, config["steps"], 1.0), run, world)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if step == 0:
            out |= {f"grad_step0/{k}": v for k, v in to_official(seen).items()}
            out |= {f"after_step1/{k}": v.clone() for k, v in to_official(mae.state_dict()).items()}
    out |= {f"final/{k}": v.clone() for k, v in to_official(mae.state_dict()).items()}
    return {**out, "losses": torch.stack(losses), "grad_norms": torch.stack(norms)}
