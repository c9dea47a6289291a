"""Fine-tuning and `--save` as `evaluate` calls them: one answer, and a classifier that stays."""

import math
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
from .labels import Note
from .probe import LinearProbe, held_out_parts
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


def check_choice(save: Path | None, model: EvalModel, pools: Sequence[str] | None, labels: np.ndarray) -> None:
    """Refuse to keep the better of several poolings where no training images can be held out to choose by.

    Args:
        save: the folder; None: nothing is kept.
        model: whose linear probe.
        pools: those that were asked for; None: the method's own.
        labels: of the training images, -1 unknown; or a row of labels each.
    """
    if save is None:
        return
    if labels.ndim > 1:
        raise ValueError(f"--save {save} keeps a probe that tells one class an image, not several labels: leave it out")
    if len(pools or model.pools) > 1 and not held_out_parts(labels[labels >= 0], 0):
        raise ValueError(
            f"--save {save} chooses among poolings by held-out training images, and a class has one image only: "
            f"give --pool cls or --pool mean"
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
    rows: Sequence[dict[str, Any]],
    folder: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = -1,
    progress: Report | None = None,
    note: Note | None = None,
) -> Classifier:
    """Fit the linear probes of rows of results once more, and keep one with its backbone.

    Of several poolings that is kept which finds the held-out training images likeliest, by the mean log-loss
    that chose the strength of its penalty: the test images have no say, so that its score on them is honest.

    Args:
        model: the backbone.
        train: training images.
        labels: their classes, -1: left out.
        rows: what `evaluate` said of these probes, one a pooling; the scores of the kept one stay beside it.
        folder: where.
        seed, device, workers, progress: as for `evaluate`.
        note: told what is kept, and by what it was chosen.
    Raises:
        ValueError: no network; another layer or pooling; several poolings and nothing to choose by.
    """
    if model.backbone is None:
        raise ValueError(f"--save keeps a network with its head, and {model.name} has none; give a model")
    for row in rows:
        if row["features"] not in ("cls", "mean") or row["layer"] != "last":
            raise ValueError(
                f"--save keeps a linear probe of the last block's cls or mean, not of {row['layer']} "
                f"{row['features']}; give --pool cls or --pool mean, and --layers last"
            )
    pools = [row["features"] for row in rows]
    taken = extract(
        model.backbone, train, size=model.size, mean=model.mean, std=model.std, channels=model.channels,
        value_range=model.value_range, pools=pools, device=device, workers=workers, progress=progress,
    )  # fmt: skip
    known = labels[taken.rows]
    check_choice(folder, model, pools, known)  # once more: an image that cannot be read may have been a class' second
    probe, told = LinearProbe(seed=seed), known >= 0
    fitted = {pool: probe.fit(taken.values[pool][told], known[told]) for pool in pools}
    losses = {pool: math.inf if each.loss is None else each.loss for pool, each in fitted.items()}
    chosen = min(pools, key=lambda pool: losses[pool])  # the first of equals
    if note:
        others = ", ".join(f"{pool} {loss:.4f}" for pool, loss in losses.items())
        why = f", chosen on held-out training images (log-loss: {others})" if len(pools) > 1 else ""
        note(f"kept in {folder}: the linear probe on {chosen}{why}")
    row = rows[pools.index(chosen)]
    return keep(linear_classifier(model, fitted[chosen], chosen, names_of(train, labels)), row, folder)


def keep(classifier: Classifier, row: dict[str, Any], folder: Path) -> Classifier:
    """Write a classifier down with what it scored."""
    kept = classifier._replace(about={"version": __version__, **row})
    write_classifier(folder, kept)
    return kept
