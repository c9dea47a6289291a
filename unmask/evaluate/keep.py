"""Fine-tuning and `--save` as `evaluate` calls them: one answer, and a classifier that stays."""

from collections.abc import Sequence
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
from .rows import Answer, scored
from .shots import Shots
from .take import EvalModel, Settings


def check_save(save: Path | None, models: Sequence[EvalModel], protocols: Sequence[str], how: Settings) -> None:
    """Refuse to keep what is not one classifier, before hours are spent."""
    kept = [protocol for protocol in protocols if protocol in ("linear", "finetune")]
    if save is not None and (len(models) != 1 or len(kept) != 1 or models[0].backbone is None):
        raise ValueError(f"--save {save} keeps one classifier: give one model, not pixels, and linear or finetune")
    if save is not None and how.shots != (None,):
        raise ValueError(f"--save {save} keeps one classifier, of all the labels: leave --shots out")
    if save is not None and "linear" in kept and how.probe != "common":
        raise ValueError(f"--save {save} keeps the common linear probe: leave --probe {how.probe} out")
    pools = set(how.pools or ()) - {"cls", "mean"}
    if save is not None and "linear" in kept and (pools or how.layers not in (None, "last")):
        raise ValueError(
            f"--save {save} keeps a linear probe of the last block's cls or mean: give --pool cls or --pool mean, and "
            f"--layers last"
        )


def tuned(
    model: EvalModel,
    sources: tuple[Source, Source],
    truth: tuple[Int[np.ndarray, "S"], Int[np.ndarray, "Q"]],
    shots: Shots | None,
    seeds: int,
    *,
    seed: int = 0,
    save: Path | None = None,
    **options: Any,
) -> Answer:
    """Fine-tune, and keep the network where `save` says; the rest as for `finetune`.

    With `shots`, once for each of `seeds` draws of the labels. The training run lies in `save`/training, from
    which the same call goes on after a stop.
    """
    names = names_of(sources[0], truth[0])
    options["classes"] = len(names)
    if shots is None:
        folder = None if save is None else save / "training"
        learned = finetune(model, sources, truth, seed=seed, folder=folder, **options)
        if save is not None:
            kept = Classifier(learned.vit, names, model.mean, model.std, model.value_range, frame=learned.frame)
            keep(kept, learned.answer.row, save)
        return learned.answer
    labelled, found = np.flatnonzero(truth[0] >= 0), []
    for each in range(seed, seed + seeds):
        few = np.full_like(truth[0], -1)
        chosen = labelled[shots.draw(truth[0][labelled], each)]
        few[chosen] = truth[0][chosen]
        found.append(finetune(model, sources, (few, truth[1]), seed=each, **options).answer)
    first, said = found[0], [answer.predicted[0] for answer in found]
    names_ = tuple(first.row[name] for name in ("model", "protocol", "features", "layer", "k"))
    return scored(
        names_, said, first.labels, first.places, first.row["n_train"],
        seed=seed, shots=shots, seeds=range(seed, seed + seeds),
    )  # fmt: skip


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
