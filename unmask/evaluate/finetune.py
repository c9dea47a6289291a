"""Fine-tuning: what a backbone is worth when it may go on learning.

A copy of the backbone gets a head and is trained by the one loop, with the setting of its method and size
(`settings.py`); the backbone that was given does not move. It is the protocol of the papers' headline numbers.
"""

import dataclasses
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from ..config import DataConfig, RunConfig
from ..data.record import Source
from ..framing import Frame
from ..methods.classify import Classify
from ..parallel import World
from ..train import prepare, train
from ..vit import ViT
from ..weights.finetuned import finetuned_from
from .classified import classify
from .labels import Note
from .rows import Answer, scored
from .settings import fine_tuning, method_of, optim_of
from .take import EvalModel


class Learned(NamedTuple):
    """A fine-tuned network and how well it does."""

    answer: Answer
    """what it says of the test images, of protocol `finetune`"""
    vit: ViT
    """with its head; on the CPU, in evaluation mode"""
    frame: Frame
    """how its test images were cut"""


class Relabelled:
    """A source under other labels, those with -1 left out."""

    def __init__(self, source: Source, labels: Int[np.ndarray, "S"], classes: list[str]):
        self.source, self.name = source, source.name
        self.classes: list[str] | None = classes
        self.index = np.flatnonzero(labels >= 0)
        self.labels: np.ndarray | None = labels[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Any:
        assert self.labels is not None
        return self.source[int(self.index[i])]._replace(label=int(self.labels[i]))


def finetune(
    model: EvalModel,
    sources: tuple[Source, Source],
    truth: tuple[Int[np.ndarray, "S"], Int[np.ndarray, "Q"]],
    *,
    classes: int | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = -1,
    folder: Path | None = None,
    note: Note | None = None,
) -> Learned:
    """Fine-tune a copy of a backbone on labelled images and judge it by others.

    Args:
        model: whose backbone is copied; its images keep their mean and deviation.
        sources: training and test images.
        truth: their labels in one numbering (`match_labels`), -1: left out. Those of few-shot training are -1
            but for the shots.
        classes: how many; None: the largest training label plus one.
        epochs: instead of the setting's.
        lr: peak learning rate for the setting's batch, instead of its own.
        size: image side, instead of the backbone's: positions are interpolated.
        seed: of the head, the order, the views and the bootstrap.
        device: where to train.
        workers: decoding processes.
        folder: where the training run lives, so that the same call goes on after a stop; None: nowhere.
        note: told which setting is taken.
    Raises:
        ValueError: pixels have no network; fewer than two classes; a label is not one of `classes`.
    """
    if model.backbone is None:
        raise ValueError(f"{model.name} has no network to fine-tune; leave it out, or finetune untrained:mae instead")
    labels = truth[0]
    classes = int(labels.max()) + 1 if classes is None else classes
    known = labels[labels >= 0]
    if len(np.unique(known)) < 2:
        raise ValueError(f"finetune: {len(known)} training images of {len(np.unique(known))} class; give two classes")
    backbone, world = model.backbone, World(0, 1, torch.device(device))
    how = fine_tuning(backbone.config, len(known), gpu=world.device.type == "cuda")
    how = how if lr is None else dataclasses.replace(how, lr=lr)
    if epochs is not None:
        how = dataclasses.replace(how, epochs=epochs, warmup=how.warmup * epochs / how.epochs)
    method = method_of(how, backbone.config, classes, model.mean, size)
    source = Relabelled(sources[0], labels, [str(i) for i in range(classes)])
    with tempfile.TemporaryDirectory(prefix="unmask-finetune-") if folder is None else nullcontext(str(folder)) as out:
        config = RunConfig(
            recipe="finetune",
            method=method,
            data=_data(model, source),
            optim=optim_of(how),
            batch=how.batch,
            epochs=how.epochs,
            seed=seed,
            workers=workers,
            device=str(world.device),
            out=out,
        )
        config, built = prepare(config, world)
        assert isinstance(built, Classify)
        weights = {name: value.to(world.device) for name, value in backbone.state_dict().items()}
        fresh = finetuned_from(weights, backbone.config, built.vit)
        if note:
            note(f"{model.name}: {describe(config, len(source))}; {', '.join(fresh)} begin afresh")
        run = train(config, source, world, built)
        vit = run.backbone().to(world.device)
    said = classify(
        vit, sources[1], mean=model.mean, std=model.std, value_range=model.value_range, frame=how.frame,
        device=device, workers=workers,
    )  # fmt: skip
    if said.skipped and note:
        note(f"test: {len(said.skipped)} of {len(sources[1])} images skipped, first: {said.skipped[0]}")
    asked, known_places = truth[1][said.rows], truth[1][said.rows] >= 0
    predicted = said.probabilities.argmax(1)[known_places]
    names = (model.name, "finetune", how.pool, "last", None)
    answer = scored(names, [predicted], asked[known_places], said.rows[known_places], len(known), seed=seed)
    return Learned(answer, vit.cpu(), how.frame)


def describe(config: RunConfig, images: int) -> str:
    """The setting in one line."""
    method, optim = config.method, config.optim
    return (
        f"fine-tuning on {images:,} images, {config.epochs:g} epochs at batch {config.batch}, lr {optim.base_lr:.3g}, "
        f"layer decay {method.layer_decay:g}, drop path {method.vit.drop_path:g}, pooling {method.vit.pool}"  # type: ignore[attr-defined]
    )


def _data(model: EvalModel, source: Relabelled) -> DataConfig:
    return DataConfig(
        train=source.name,
        images=len(source),
        channels=model.channels,
        range=model.value_range,
        mean=model.mean,
        std=model.std,
    )
