"""Golden cases of the official BEiT: forward passes, masks, index tables, groups, schedules, a trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import DataConfig, OptimConfig, RunConfig
from ..layer_decay import layer_id
from ..masks import BlockMask
from ..methods.base import Batch, Group, Progress
from ..methods.beit import BEiT, BEiTConfig
from ..methods.classify import Classify, ClassifyConfig
from ..optim import build_optimizer
from ..parallel import World
from ..positions import RelativePositionBias, relative_position_index
from ..schedules import StepCosine
from ..step import share_hidden, update
from ..views import View
from ..vit import ViTConfig, places_of
from ..weights.beit import from_official, to_official
from .draws import PythonDraws

if TYPE_CHECKING:
    from .goldens import Case

Produced = dict[str, "Tensor | float"]


class GivenTokens(nn.Module):
    """Stands in for a tokenizer: the "image" is the tokens themselves, one pixel each."""

    stride = 1

    def __init__(self, vocab: int, channels: int):
        super().__init__()
        self.vocab, self.channels = vocab, channels

    def encode(self, image: Float[Tensor, "B C gh gw"]) -> Int[Tensor, "B N"]:
        return image[:, 0].flatten(1).long()

    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C gh gw"]:
        return ids.unflatten(1, grid).unsqueeze(1).expand(-1, self.channels, -1, -1).float()


def vit_config(model: dict[str, Any], norm_eps: float = 1e-6, **fields: Any) -> ViTConfig:
    """Our names for the official constructor's."""
    size, patch = model["img_size"], model["patch_size"]
    shared, own = model["use_shared_rel_pos_bias"], model["use_rel_pos_bias"]
    return ViTConfig(
        image_size=size if isinstance(size, int) else tuple(size),
        patch=patch if isinstance(patch, int) else tuple(patch),
        channels=model.get("in_chans", 3),
        width=model["embed_dim"],
        depth=model["depth"],
        heads=model["num_heads"],
        mlp_ratio=model.get("mlp_ratio", 4.0),
        pos_embed="learned" if model["use_abs_pos_emb"] else "none",
        rel_pos="shared" if shared else "per-block" if own else "none",
        qkv_bias="qv" if model["qkv_bias"] else "none",
        layer_scale=model["init_values"] or None,
        norm_eps=norm_eps,
        init="beit",
        **fields,
    )


def build(config: dict[str, Any], weights: dict[str, Tensor] | None = None) -> BEiT:
    """Our BEiT, with the official weights of a case where they are given."""
    model = config["model"]
    vit = vit_config(model, config.get("layer_norm_eps", 1e-6), mask_token=True)
    tokenizer = GivenTokens(model["vocab_size"], vit.channels)
    beit = BEiT(BEiTConfig(vit=vit, views=(View(vit.image_size),)), tokenizer)
    if weights is not None:
        beit.load_state_dict(from_official(weights))
    return beit


def batch_of(image: Tensor, tokens: Tensor, mask: Tensor) -> Batch:
    """A batch whose twin is the tokens."""
    twin = tokens.flatten(1)[:, None, None].expand(-1, image.shape[1], -1, -1).float()
    mask = mask.flatten(1)
    return Batch(views=(image,), twins=(twin,), masks=(mask,), hidden=(mask.flatten().nonzero().flatten(),))


@torch.no_grad()
def forward(case: Case) -> Produced:
    """One forward pass of the method, and what it is made of."""
    (weights,) = case.weights.values()
    beit = build(case.config, weights)
    batch = batch_of(case.inputs["imgs"], case.inputs["tokens"], case.inputs["bool_masked_pos"])
    result = beit(batch, Progress(0, 1, 1.0))
    places = places_of(batch.hidden[0], batch.masks[0].shape[1], 1)
    hidden = beit.vit.at(batch.views[0], places, hidden=batch.masks[0])
    out: Produced = {}

    def watch(name: str, module: nn.Module) -> None:
        def keep(_module: nn.Module, _args: Any, value: Any) -> None:
            out[name] = value

        module.register_forward_hook(keep)

    for i, block in enumerate(beit.vit.blocks):
        watch(f"block{i}", block)
    tokens = beit.vit(batch.views[0], hidden=batch.masks[0])
    biases = [part for part in beit.vit.modules() if isinstance(part, RelativePositionBias)]
    if biases:
        out["relative_position_index"] = biases[0].relative_position_index
    if beit.vit.rel_pos_bias is not None:
        out["rel_pos_bias"] = beit.vit.rel_pos_bias()
    return {
        **out,
        "features": torch.cat([tokens.prefix, tokens.patches], dim=1),
        "logits_all": beit.lm_head(tokens.patches),
        "logits_masked": beit.lm_head(hidden),
        "labels_masked": beit.tokens(batch).flatten()[batch.hidden[0]],
        "loss": result.loss,
        "mlm_acc": result.metrics["mlm_acc"],
    }


def index_tables(case: Case) -> Produced:
    """Which row of the bias table each pair of tokens reads, for several windows."""
    out: Produced = {}
    for window in case.config["windows"]:
        name, index = f"{window[0]}x{window[1]}", relative_position_index((window[0], window[1]))
        out[f"index_{name}"] = index
        out[f"rows_{name}"] = 0.0 if int(index.max()) + 1 == case.outputs_json[name] else float("inf")
    return out


def block_masks(case: Case) -> Produced:
    """The masks of our policy, fed the official draws: equal bit by bit."""
    config, out = case.config, {}
    for name, g in config["generators"].items():
        size = g["input_size"]
        grid = (size, size) if isinstance(size, int) else tuple(size)
        policy = BlockMask(
            count=g["num_masking_patches"],
            smallest=g["min_num_patches"],
            largest=g["max_num_patches"],
            aspect=(g["min_aspect"], g["max_aspect"] or 1 / g["min_aspect"]),
        )
        rng = PythonDraws(g["seed"])
        masks = np.stack([policy(grid, rng) for _ in range(config["draws"])])
        rng = PythonDraws(g["seed"] + config["population_seed_offset"])
        total = np.sum([policy(grid, rng) for _ in range(config["population_draws"])], axis=0)
        out[f"masks_{name}"] = torch.from_numpy(masks)
        out[f"freq_{name}"] = torch.from_numpy(masks.mean(0))
        out[f"population_freq_{name}"] = torch.from_numpy(total / config["population_draws"])
    return out


def groups_and_schedule(case: Case) -> Produced:
    """Schedules; weight decay and layer decay of every parameter, by its official name."""
    config, expected = case.config, case.outputs_json
    out: Produced = {}
    for i, (peak, final, epochs, steps_per_epoch, warmup, start) in enumerate(config["sched"]):
        schedule, steps = StepCosine(peak, warmup, final, start), epochs * steps_per_epoch
        values = [schedule(Progress(step, steps, steps_per_epoch)) for step in range(steps)]
        out[f"cosine_{i}"] = torch.tensor(values, dtype=torch.float64)
    model = config["model"]
    pool = "mean" if model["use_mean_pooling"] else "cls"
    classify = classifier(model, pool, layer_decay=config["layer_decay"])
    out["finetune_groups"] = compare_groups(
        flat(classify.parameter_groups(), config["weight_decay"]), expected["finetune_groups_in_order"], classify
    )
    for name, value in expected.items():
        if name.startswith("pretraining_groups"):
            beit = build({"model": {**model, **options_of({n for g in value for n in g["params"]})}})
            weight_decay = max(g["weight_decay"] for g in value)
            out["pretraining_groups"] = compare_groups(flat(beit.parameter_groups(), weight_decay), value, beit)
    examples = expected.get("layer_id_examples (num_max_layer=depth+2)", {})
    wrong = [k for k, v in examples.items() if layer_id(k, model["depth"]) != v]
    wrong += [k for k, v in expected.get("special", {}).items() if layer_id(k, 12) != v]
    return {**out, "layer_ids": float("inf") if wrong else 0.0}


def options_of(names: set[str]) -> dict[str, Any]:
    """Which pre-training model has parameters of these names."""
    ends = {name.rpartition(".")[2] for name in names}
    return {
        "vocab_size": 64,
        "depth": 1 + max(int(name.split(".")[1]) for name in names if name.startswith("blocks.")),
        "qkv_bias": "q_bias" in ends,
        "init_values": 0.1 if "gamma_1" in ends else None,
        "use_abs_pos_emb": "pos_embed" in ends,
        "use_rel_pos_bias": "blocks.0.attn.relative_position_bias_table" in names,
        "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in names,
    }


def flat(groups: list[Group], weight_decay: float) -> dict[str, tuple[float, float]]:
    """Weight decay and rate scale of each parameter."""
    return {n: (weight_decay if g.decay else 0.0, g.lr_scale) for g in groups for n in g.names}


def compare_groups(ours: dict[str, tuple[float, float]], theirs: list[dict[str, Any]], model: nn.Module) -> float:
    """0 where every parameter has its official group's weight decay and rate scale, else infinity."""
    names = {id(v): k for k, v in to_official(dict(model.named_parameters()), (1, 1)).items()}
    mine = {names[id(p)]: ours[name] for name, p in model.named_parameters()}
    wanted = {name: (g["weight_decay"], g["lr_scale"]) for g in theirs for name in g["params"]}
    same = mine.keys() == wanted.keys() and all(np.allclose(mine[n], wanted[n], rtol=1e-9, atol=0) for n in mine)
    return 0.0 if same else float("inf")


def classifier(model: dict[str, Any], pool: Literal["cls", "mean"], eps: float = 1e-6, **fields: Any) -> Classify:
    """Our classifier for the official fine-tuning model."""
    vit = vit_config(model, eps, classes=model["num_classes"], pool=pool)
    return ClassifyConfig(vit=vit, views=(View(vit.image_size),), head_std=2e-5, **fields).build()


@torch.no_grad()
def finetune(case: Case) -> Produced:
    """The classifiers: features, logits and every block's output, for each kind of pooling."""
    out: Produced = {}
    for name, model in case.config["models"].items():
        mean = model["use_mean_pooling"]
        eps = case.config.get("layer_norm_eps", 1e-6)
        vit = classifier(model, "mean" if mean else "cls", eps).vit
        vit.load_state_dict(from_official(case.weights[name], prefix=""))
        image = case.inputs[f"imgs_{name}"]
        tokens = vit(image)
        pooled = tokens.patches.mean(1) if mean else tokens.prefix[:, 0]
        out[f"features_{name}"], out[f"logits_{name}"] = vit.fc_norm(pooled), vit.logits(image)
        for i, layer in enumerate(vit(image, layers=tuple(range(model["depth"])))):
            out[f"layer{i}_{name}"] = torch.cat([layer.prefix, layer.patches], dim=1)
    return out


def trajectory(case: Case) -> Produced:
    """Training steps through our own groups, optimizer, loss and `train.update`."""
    config = case.config
    (weights,) = case.weights.values()
    beit = build(config, weights)
    grid, steps = beit.vit.config.grid, config["steps"]
    optim = OptimConfig(
        base_lr=config["lr"],
        base_batch=None,
        schedule="constant",
        betas=tuple(config["betas"]),
        eps=config["eps"],
        weight_decay=config["weight_decay"],
        weight_decay_end=config.get("weight_decay_end"),
        clip=config["clip_grad"],
    )
    run = RunConfig(
        recipe="golden",
        method=beit.config,
        data=DataConfig(),
        optim=optim,
        batch=config["batch"],
        precision="fp32",
    )
    optimizer = build_optimizer(beit.parameter_groups(), optim)
    world = World(0, 1, case.inputs["imgs"].device)
    seen: dict[str, Tensor] = {}

    def look(*_: Any) -> None:  # gradients as the optimizer gets them, clipped
        seen.update({n: p.grad.clone() for n, p in beit.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(look)
    out: Produced = {}
    losses, norms, decays = [], [], []
    for step in range(steps):
        given = (case.inputs[name][step] for name in ("imgs", "tokens", "bool_masked_pos"))
        micro = zip(*(x.chunk(config.get("update_freq", 1)) for x in given), strict=True)
        batches = [batch_of(*part) for part in micro]
        batches = [b._replace(position=torch.arange(len(b.views[0]))) for b in batches]
        share_hidden(batches, world)
        result = update(beit, optimizer, batches, Progress(step, steps, 1.0), run, world)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        decays.append(next(g["weight_decay"] for g in optimizer.param_groups if g["decay"]))
        if step == 0:
            gradients = {k: v for k, v in to_official(seen, grid).items() if v.is_floating_point()}
            out |= {f"grad_step0_clipped/{k}": v for k, v in gradients.items()}
            out |= {f"after_step1/{k}": v.clone() for k, v in to_official(beit.state_dict(), grid).items()}
    out |= {f"final/{k}": v.clone() for k, v in to_official(beit.state_dict(), grid).items()}
    schedule = torch.tensor(decays, dtype=torch.float64)
    return {
        **out,
        "losses": torch.stack(losses),
        "grad_norms_before_clip": torch.stack(norms),
        "wd_schedule": schedule,
    }
