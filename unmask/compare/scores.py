"""All models judged at once: the same images, the same protocols, beside pixels and untrained networks."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..checkpoint import write_atomically
from ..evaluate import Assessment, EvalModel, LabelFree, assess
from ..evaluate.features import Report
from ..evaluate.labels import Note, match_labels
from ..evaluate.shots import ALL
from ..models import open_models, untrained
from .answer import winners
from .entries import Entry
from .images import Images
from .settings import DRAWS, FEW, Settings

NEIGHBORS = 20
"""k of k-NN, DINO's and iBOT's choice"""
FROZEN = ("knn", "linear")
"""protocols that are quick enough for several draws of few labels"""


def opened(entries: Sequence[Entry], images: Images, seed: int, device: torch.device) -> list[EvalModel]:
    """The networks of the runs by their names, each architecture untrained, and pixels."""
    specs = [*(f"{entry.run.path}@{entry.step}" for entry in entries), "pixels"]
    *trained, raw = open_models(specs, images.train, seed=seed, device=device)
    models = [model._replace(name=entry.name) for model, entry in zip(trained, entries, strict=True)]
    fresh, seen = [], []
    for entry, model in zip(entries, trained, strict=True):
        assert model.backbone is not None
        sizes = dataclasses.replace(model.backbone.config, drop_path=0.0, classes=0, pool="cls", head_norm="after")
        if sizes not in seen:
            seen.append(sizes)
            fresh.append(untrained(entry.run.config, f"untrained:{entry.name}"))
            fresh[-1].backbone.to(device)
    return [*models, *fresh, raw]


def judge(
    entries: Sequence[Entry],
    images: Images,
    settings: Settings,
    device: torch.device,
    note: Note,
    progress: Callable[[str], Report] | None,
    file: Path,
) -> None:
    """Judge the models by labels, and write evaluate.json: what `evaluate --out` writes, and who is best."""
    models, names = opened(entries, images, settings.seed, device), [entry.name for entry in entries]
    known = match_labels(images.train, images.test, note)[0]
    known = known[known >= 0]
    common: dict[str, Any] = {
        "pools": ("cls", "mean"), "ks": (min(NEIGHBORS, len(known)),), "seed": settings.seed,
        "device": device, "cache": True, "note": note, "progress": progress,
        "workers": -1 if settings.workers is None else settings.workers,
    }  # fmt: skip
    frozen: list[Any] = [protocol for protocol in settings.protocols if protocol in FROZEN]
    others: list[Any] = [protocol for protocol in settings.protocols if protocol not in FROZEN]
    parts: list[Assessment] = []
    if frozen:
        shots: dict[str, Any] = {"layers": settings.layers, "shots": (ALL, FEW), "seeds": DRAWS}
        parts.append(assess(models, frozen, images.train, images.test, **common, **shots))
    if others:
        parts.append(assess(models, others, images.train, images.test, layers="last", **common))
    answers = [answer for part in parts for answer in part.answers]
    content = {
        "version": __version__,
        "results": [row for part in parts for row in part.rows],
        "differences": [row for part in parts for row in part.differences],
        "answer": winners(answers, names, seed=settings.seed),
        **parts[0].facts,
    }
    write_atomically(file, json.dumps(content, indent=1) + "\n")


def judge_without_labels(
    entries: Sequence[Entry], images: Images, settings: Settings, device: torch.device, file: Path
) -> None:
    """Measure what needs no label (`LabelFree`), and write evaluate.json."""
    measure = LabelFree(images.test, max_images=settings.count or 1000, seed=settings.seed)
    rows = []
    for model in opened(entries, images, settings.seed, device):
        if model.backbone is None:
            continue
        found = measure(model, device=device)
        for pool in ("cls", "mean"):
            measured = {name.split("/")[1]: value for name, value in found.items() if name.endswith(f"/{pool}")}
            rows.append({"model": model.name, "features": pool, "n": int(np.int64(len(measure.source))), **measured})
    content = {"version": __version__, "results": [], "differences": [], "labelfree": rows}
    write_atomically(file, json.dumps(content | {"answer": winners([], [], seed=0)}, indent=1) + "\n")
