"""Fine-tuning and `--save` as `evaluate` calls them: one row of results, and a classifier that stays."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from .. import __version__
from ..data.record import Source
from .classifier import Classifier, linear_classifier, write_classifier
from .features import Report, extract
from .finetune import finetune
from .probe import LinearProbe
from .run import EvalModel


def tuned(
    model: EvalModel,
    sources: tuple[Source, Source],
    truth: tuple[Int[np.ndarray, "S"], Int[np.ndarray, "Q"]],
    *,
    save: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune, return the row, and keep the network where `save` says; the rest as for `finetune`.

    The training run lies in `save`/training, from which the same call goes on after a stop.
    """
    names = names_of(sources[0], truth[0])
    folder = None if save is None else save / "training"
    learned = finetune(model, sources, truth, classes=len(names), folder=folder, **options)
    if save is not None:
        keep(Classifier(learned.vit, names, model.mean, model.std, model.value_range), learned.row, save)
    return learned.row


def names_of(train: Source, labels: Int[np.ndarray, "S"]) -> list[str]:
    """The classes' names by label, or their numbers."""
    return list(train.classes) if train.classes else [str(i) for i in range(int(labels.max()) + 1)]


def keep_linear(
    model: EvalModel,
    train: Source,
    labels: Int[np.ndarray, "S"],
    row: dict[str, Any],
    folder: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = -1,
    progress: Report | None = None,
) -> Classifier:
    """Fit the linear probe of a row of results once more, and keep it with its backbone.

    Args:
        model: the backbone.
        train: training images.
        labels: their classes, -1: left out.
        row: what `evaluate` said of this probe: its pooling is taken, its scores are kept beside.
        folder: where.
        seed, device, workers, progress: as for `evaluate`.
    """
    if model.backbone is None:
        raise ValueError(f"--save keeps a network with its head, and {model.name} has none; give a model")
    pool = row["features"]
    if pool not in ("cls", "mean") or row["layer"] != "last":
        raise ValueError(
            f"--save keeps a linear probe of the last block's cls or mean, not of {row['layer']} {pool}; "
            f"give --pool cls or --pool mean, and --layers last"
        )
    taken = extract(
        model.backbone, train, size=model.size, mean=model.mean, std=model.std, channels=model.channels,
        value_range=model.value_range, pools=(pool,), device=device, workers=workers, progress=progress,
    )  # fmt: skip
    known = labels[taken.rows]
    fitted = LinearProbe(seed=seed).fit(taken.values[pool][known >= 0], known[known >= 0])
    return keep(linear_classifier(model, fitted, pool, names_of(train, labels)), row, folder)


def keep(classifier: Classifier, row: dict[str, Any], folder: Path) -> Classifier:
    """Write a classifier down with what it scored."""
    kept = classifier._replace(about={"version": __version__, **row})
    write_classifier(folder, kept)
    return kept
