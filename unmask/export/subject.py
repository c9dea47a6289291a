"""What is exported: the weights of a MODEL, and what is known of their making."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from .. import tokenizers
from ..borrow import of_run
from ..evaluate.classifier import FILE, Classifier, read_classifier
from ..methods.codec import Codec
from ..methods.dvae import DVAEConfig
from ..models import names_run, open_model, parse_run, read_weights
from ..recipes import Facts
from ..run import Run
from ..weights.loaded import Loaded


class Subject(NamedTuple):
    """A MODEL, opened to be written for other programs."""

    name: str
    """as it was asked for"""
    weights: Loaded | Codec
    """a ViT with what was trained beside it, or the tokenizer of a dVAE run"""
    run: Run | None = None
    step: int | None = None


class Written(NamedTuple):
    """What a format says of what it wrote."""

    loading: str
    """how to load it, in Python"""
    notes: tuple[str, ...] = ()
    """what the reader must know: what was left out, and why"""


def open_subject(model: str, heads: int | None = None) -> Subject:
    """Open a MODEL for export.

    Args:
        model: a run, a folder of `evaluate --save`, a checkpoint or folder of any dialect, a tokenizer,
            timm:NAME, hf:NAME, untrained:RECIPE.
        heads: attention heads, where the weights do not tell them.
    Raises:
        ValueError, FileNotFoundError: there is no such model, or it has no network.
    """
    if model == "pixels":
        raise ValueError("pixels has no network to export; give a run, a checkpoint or untrained:RECIPE")
    if model.startswith("untrained:"):
        opened = open_model(model, Facts())
        assert opened.backbone is not None
        state = tensors(opened.backbone)
        return Subject(model, Loaded("an untrained ViT", opened.backbone.config, state, {}, opened.mean, opened.std))
    if (Path(model) / FILE).is_file():
        return Subject(model, of_classifier(read_classifier(Path(model))))
    if not names_run(model):
        try:
            return Subject(model, read_weights(model, heads))
        except ValueError as error:
            try:  # perhaps a tokenizer
                return Subject(model, tokenizers.load(model))
            except ValueError:
                raise error from None
    run, step, part = parse_run(model)
    step = run.latest() if step is None else step
    if isinstance(run.config.method, DVAEConfig):
        codec = run.method(step).backbone()
        assert isinstance(codec, Codec)
        return Subject(model, codec, run, step)
    if step is None:
        raise ValueError(f"{run.path} has no checkpoint yet; train it first")
    weights = of_run(run, step, part)
    looks = f"{type(run.config.method).__name__.removesuffix('Config')} {run.config.recipe}, step {step}"
    return Subject(model, dataclasses.replace(weights, looks=looks), run, step)


def of_classifier(saved: Classifier) -> Loaded:
    """The weights of a saved classifier, its head and the names of its classes among them."""
    protocol = saved.about.get("protocol", "kept")
    return Loaded(
        f"a {protocol} classifier of {saved.about.get('model', 'unknown')}", saved.vit.config, tensors(saved.vit), {},
        saved.mean, saved.std, saved.value_range, classes=tuple(saved.classes), frame=saved.frame,
    )  # fmt: skip


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's state as files want it: on the CPU, contiguous, each name with its own memory."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
