"""A classifier that stays: one ViT with its head, the names of its classes, and how its images are prepared.

RUN/
  classifier.json               classes, architecture, mean and deviation, what it scored; names the next file
  classifier-HASH.safetensors   the ViT's tensors by timm's names, `head.weight` and `head.bias` among them

The JSON is written last and whole, so that a reader finds the old classifier or the new one. A linear probe is
kept as the frozen ViT with the probe as its head, its standardization folded in.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ..checkpoint import write_atomically
from ..config import from_json, to_json
from ..framing import PLAIN, Frame
from ..vit import ViT, ViTConfig
from .probe import FittedLinear
from .take import EvalModel

FILE = "classifier.json"
"""what makes a folder a saved classifier"""


class Classifier(NamedTuple):
    """What `unmask predict` needs."""

    vit: ViT
    """with its head; on the CPU, in evaluation mode"""
    classes: list[str]
    """names by label"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float] | None = None
    about: dict[str, Any] = {}
    """where it comes from: protocol, model, scores"""
    frame: Frame = PLAIN
    """how images are cut"""


def linear_classifier(model: EvalModel, fitted: FittedLinear, pool: str, classes: list[str]) -> Classifier:
    """Put a linear probe on top of the backbone that it was fitted on.

    Args:
        model: the backbone; copied.
        fitted: on its features of one pooling, raw.
        pool: `cls` or `mean`, after the final norm.
        classes: names by label; those that the probe never saw get a logit that never wins.
    Raises:
        ValueError: pixels, or another pooling.
    """
    if model.backbone is None:
        raise ValueError(f"--save keeps a network with its head, and {model.name} has none; give a model")
    if pool not in ("cls", "mean"):
        raise ValueError(
            f"--save keeps a linear probe of cls or of mean, not of {pool}; give --pool cls or --pool mean"
        )
    old = model.backbone.config
    state = {n: v.cpu() for n, v in model.backbone.state_dict().items() if not n.startswith(("head.", "fc_norm."))}
    bare = isinstance(model.backbone.norm, nn.Identity)  # it normalizes after pooling: frozen features are as they are
    vit = ViT(dataclasses.replace(old, classes=len(classes), pool=pool, head_norm="none" if bare else "before"))
    weight = torch.zeros(len(classes), old.width)
    bias = torch.full((len(classes),), -1e4)
    weight[fitted.classes], bias[fitted.classes] = fitted.weight, fitted.bias
    vit.load_state_dict(state | {"head.weight": weight, "head.bias": bias})
    return Classifier(vit.eval(), classes, model.mean, model.std, model.value_range)


def write_classifier(folder: Path, classifier: Classifier) -> Path:
    """Keep a classifier in a folder, which may be there; returns the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    vit = classifier.vit
    content = save({name: value.detach().cpu().contiguous() for name, value in vit.state_dict().items()})
    weights = f"classifier-{hashlib.blake2b(content, digest_size=8).hexdigest()}.safetensors"
    partial = folder / f".{weights}.tmp"
    partial.write_bytes(content)
    partial.rename(folder / weights)
    text = {
        "weights": weights,
        "classes": classifier.classes,
        "vit": to_json(vit.config),
        "mean": classifier.mean,
        "std": classifier.std,
        "range": classifier.value_range,
        "frame": classifier.frame,
        "about": classifier.about,
    }
    write_atomically(folder / FILE, json.dumps(text, indent=1) + "\n")
    for old in folder.glob("classifier-*.safetensors"):
        if old.name != weights:
            old.unlink()
    return folder / FILE


def read_classifier(folder: Path) -> Classifier:
    """Read what `write_classifier` wrote.

    Raises:
        FileNotFoundError: no classifier there.
        ValueError: it is damaged, or its parts do not fit.
    """
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {FILE}; make one: unmask evaluate MODEL linear --save {folder} ...")
    try:
        text = json.loads(file.read_text(encoding="utf-8"))
        config = from_json(text["vit"])
        assert isinstance(config, ViTConfig)
        vit = ViT(config)
        weights = folder / Path(text["weights"]).name
        vit.load_state_dict(load_file(weights))
        limits = None if text["range"] is None else (float(text["range"][0]), float(text["range"][1]))
        classes, about = [str(name) for name in text["classes"]], dict(text["about"])
        frame = Frame(*text.get("frame", PLAIN))
        mean, std = tuple(map(float, text["mean"])), tuple(map(float, text["std"]))
    except (AssertionError, IndexError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {why}); make it again with evaluate --save"
        ) from None
    if len(classes) != config.classes:
        raise ValueError(f"{file}: {len(classes)} names for a head of {config.classes} classes; make it again")
    return Classifier(vit.eval(), classes, mean, std, limits, about, frame)
