"""Run our own classes on golden cases: weights, inputs and draws of the official code, and its outputs.

A case is `NAME.safetensors` with `weights/<group>/<official key>`, `inputs/*`, `outputs/*`, and a
sidecar `NAME.json` with `case`, `config` and a tolerance for each output. The ratio of an output is
its worst |ours - golden| / (atol + rtol |golden|); up to 1 is a pass. Integers must be equal.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import parallel
from . import beit_cases, dvae_cases, finetune_cases, ibot_cases, ibot_training, mae_cases


class Case(NamedTuple):
    """One golden case, as its two files hold it."""

    name: str
    config: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    """group -> official key -> tensor"""
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    outputs_json: dict[str, Any]
    tolerances: dict[str, dict[str, Any]]


Runner = Callable[[Case], dict[str, Tensor | float]]
"""Produces outputs by name; a float is a ratio that the runner measured itself (statistics)."""

CASES: dict[str, Runner] = {
    "beit_blockwise_masking": beit_cases.block_masks,
    "beit_discrete_vae": dvae_cases.discrete_vae,
    "beit_finetune": beit_cases.finetune,
    "beit_param_groups_and_schedule": beit_cases.groups_and_schedule,
    "beit_pretrain_abs_perblock_rel": beit_cases.forward,
    "beit_pretrain_nonsquare": beit_cases.forward,
    "beit_pretrain_shared_rel": beit_cases.forward,
    "beit_relative_position_index": beit_cases.index_tables,
    "beit_trajectory": beit_cases.trajectory,
    "dalle_dvae": dvae_cases.dalle_dvae,
    "ibot_backbone": ibot_cases.backbone,
    "ibot_head": ibot_cases.head,
    "ibot_knn": ibot_cases.knn,
    "ibot_loader_masks": ibot_cases.loader_masks,
    "ibot_loss": ibot_training.loss,
    "ibot_trajectory": ibot_training.trajectory,
    "ibot_utils": ibot_cases.utils,
    "mae_finetune_param_groups": finetune_cases.param_groups,
    "mae_forward": mae_cases.forward,
    "mae_lars": finetune_cases.lars,
    "mae_layernorm_eps_probe": mae_cases.forward,
    "mae_pos_embed": mae_cases.pos_embed,
    "mae_trajectory": mae_cases.trajectory,
    "mae_vit_finetune": finetune_cases.classifier,
}


def read(path: Path, device: str | torch.device = "cpu") -> tuple[str, Case]:
    """Read a case and name the code it is for: by the sidecar's `case`, or else by the file's name.

    Weights and inputs go to the device; outputs, which are compared, stay on the CPU.
    """
    sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    kind = sidecar.get("case") or path.stem
    if kind not in CASES:
        kind = max((k for k in CASES if path.stem.startswith(k)), key=len, default=kind)
    weights: dict[str, dict[str, Tensor]] = {}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for name, tensor in load_file(path).items():
        part, _, rest = name.partition("/")
        if part == "weights":
            group, _, official = rest.partition("/")
            weights.setdefault(group, {})[official] = tensor.to(device)
        elif part == "inputs":
            inputs[rest] = tensor.to(device)
        else:
            outputs[rest] = tensor
    case = Case(path.stem, sidecar["config"], weights, inputs, outputs, sidecar["outputs_json"], sidecar["tensors"])
    return kind, case


def ratio(ours: Tensor | float, golden: Tensor, rule: dict[str, Any], sign_flips: float = 0.0) -> float:
    """The worst deviation from a golden tensor as a multiple of its tolerance.

    Args:
        rule: the sidecar's entry: suggested_atol, suggested_rtol, exclude_index_range.
        sign_flips: largest step that Adam can turn around where a gradient is mere rounding noise;
            up to 0.1 % of a trajectory's elements may differ by that much (goldens/README).
    Returns:
        0 and more; infinite for another shape, or for integers that differ.
    """
    if not isinstance(ours, Tensor):
        return float(ours)
    ours = ours.detach().cpu()
    if ours.shape != golden.shape:
        return float("inf")
    if not golden.is_floating_point():
        return 0.0 if torch.equal(ours.to(golden.dtype), golden) else float("inf")
    difference = (ours.double() - golden.double()).abs()
    ratios = difference / (rule["suggested_atol"] + rule["suggested_rtol"] * golden.double().abs())
    ratios = torch.where(difference == 0, 0.0, ratios)
    if "exclude_index_range" in rule:
        first, last = rule["exclude_index_range"]
        ratios[first:last] = 0
    flipped = (ratios > 1) & (difference <= sign_flips)
    if 0 < flipped.sum() < 0.001 * ratios.numel():
        ratios[flipped] = 0
    worst = float(ratios.max()) if ratios.numel() else 0.0
    return worst if worst == worst else float("inf")


def steps_of(config: dict[str, Any]) -> int:
    """Optimizer steps of a trajectory: given, or epochs times iterations (iBOT)."""
    return config["steps"] if "steps" in config else config["epochs"] * config["iters_per_epoch"]


def run_goldens(folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Run every case of a folder.

    Args:
        folder: with NAME.safetensors and NAME.json.
        device: where ours computes: auto, cpu, cuda or cuda:N. Convolutions on a GPU without TF32, which rounds.
    Returns:
        `cases` {case: {output: worst ratio}}, `missing` outputs or cases we do not produce, and
        `failed` outputs whose ratio exceeds 1.
    Raises:
        FileNotFoundError: no case there.
        ValueError: no such device here.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no golden case (*.safetensors with a .json beside it) in {folder}")
    there = parallel.start(device).device
    report: dict[str, Any] = {"cases": {}, "missing": [], "failed": []}
    for path in paths:
        kind, case = read(path, there)
        produced: dict[str, Tensor | float] = {}
        if kind in CASES:
            try:
                with torch.device(there), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    produced = CASES[kind](case)
            except Exception as error:  # one broken case must not hide the others
                report["failed"].append(f"{case.name}: {type(error).__name__}: {error}")
        ratios: dict[str, float] = {}
        for name, golden in case.outputs.items():
            if name not in produced:
                report["missing"].append(f"{case.name}/{name}")
                continue
            rule = case.tolerances[f"outputs/{name}"]
            flips = 2 * case.config["lr"] * steps_of(case.config) if "trajectory" in kind else 0.0
            ratios[name] = ratio(produced[name], golden, rule, flips)
        for name, value in produced.items():
            if isinstance(value, float):
                ratios[name] = value
        report["cases"][case.name] = ratios
        report["failed"] += [f"{case.name}/{name}: {r:.3g}" for name, r in ratios.items() if r > 1]
    return report
