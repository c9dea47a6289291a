"""Several models, several protocols, one pair of data sets: rows that can be compared."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from ..data.record import Source
from ..vit import ViT
from .features import Pool, Report, extract, pixels
from .knn import KNN
from .labels import Note, match_labels
from .metrics import balanced, bootstrap, top1
from .probe import LinearProbe

Protocol = Literal["knn", "linear", "finetune"]
Labelled = tuple[np.ndarray, np.ndarray]
"""features [S D] and labels [S]"""

COLUMNS = (
    "model",
    "protocol",
    "features",
    "layer",
    "k",
    "top1",
    "balanced",
    "ci_low",
    "ci_high",
    "n_train",
    "n_test",
)
"""what a result holds, in this order"""

KS = (10, 20, 100, 200)
"""numbers of neighbors: those that DINO and iBOT report"""


class EvalModel(NamedTuple):
    """A backbone and the way its images must be prepared."""

    name: str
    backbone: ViT | None
    """None: the pixels are the features"""
    size: tuple[int, int]
    """(h, w) of the center crop, in pixels"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    value_range: tuple[float, float] | None = None


def evaluate(
    models: Sequence[EvalModel],
    protocols: Sequence[Protocol],
    train: Source,
    test: Source,
    *,
    pools: Sequence[Pool] = ("cls", "mean"),
    ks: Sequence[int] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch: int = 256,
    workers: int = -1,
    note: Note | None = None,
    progress: Callable[[str], Report] | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    save: Path | None = None,
) -> list[dict[str, Any]]:
    """Judge models by labelled images: frozen features, or fine-tuned.

    Args:
        models: compared on the same images, each prepared in its own way.
        protocols: `knn` (KNN), `linear` (LinearProbe), `finetune` (finetune.py).
        train: labelled images that the classifiers learn from.
        test: labelled images that they are judged by; classes are matched by name where both have names.
        pools: which features; both by default, for the better one differs between methods.
        ks: neighbors; None: 10, 20, 100, 200, without those that exceed the training images.
        seed: of the bootstrap and of the probe's held-out tenth.
        device: as for `extract`, and so the next three.
        precision: fp32 or bf16.
        batch: images a forward pass.
        workers: decoding processes.
        note: told what a reader of the numbers must know; None: standard error.
        progress: makes the progress callback of a named piece of work.
        epochs: of fine-tuning, instead of the setting's.
        lr: likewise.
        save: a folder for the classifier of the one model and the one protocol, linear or finetune; fine-tuning
            is resumable there.
    Returns:
        rows of model, protocol, features, layer, k (None for linear), top1, balanced, ci_low, ci_high
        (95 % bootstrap interval of top1), n_train, n_test. Fractions, not percent.
    Raises:
        ValueError: nothing to compare, no labels, one class, different classes, a k that was asked for
            exceeds the training images, no readable image, or features that are not finite.
    """
    if not models or not protocols:
        raise ValueError("evaluate: no model or no protocol; give at least one model and knn, linear or both")
    check_save(save, models, protocols)
    note = _once(note or _say)
    truth = match_labels(train, test, note)
    ks = _fitting(ks, int((truth[0] >= 0).sum()), note) if "knn" in protocols else ()
    rows = []
    frozen: list[Protocol] = [protocol for protocol in protocols if protocol != "finetune"]
    for model in models:
        rows += judge(
            model, frozen, (train, test), truth, pools=pools, ks=ks, seed=seed, device=device,
            precision=precision, batch=batch, workers=workers, note=note, progress=progress,
        )  # fmt: skip
        if "finetune" in protocols and model.backbone is None:
            note(f"{model.name} has no network to fine-tune and no row of finetune")
        elif "finetune" in protocols:
            from .keep import tuned  # a layer of its own: it trains

            rows.append(tuned(
                model, (train, test), truth, epochs=epochs, lr=lr, seed=seed, device=device, workers=workers,
                save=save, note=note,
            ))  # fmt: skip
    if save is not None and "linear" in protocols:
        from .keep import keep_linear

        best = max((row for row in rows if row["protocol"] == "linear"), key=lambda row: row["top1"])
        keep_linear(models[0], train, truth[0], best, save, seed=seed, device=device, workers=workers)
    return rows


def check_save(save: Path | None, models: Sequence[EvalModel], protocols: Sequence[str]) -> None:
    """Refuse to keep what is not one classifier, before hours are spent."""
    kept = [protocol for protocol in protocols if protocol in ("linear", "finetune")]
    if save is not None and (len(models) != 1 or len(kept) != 1 or models[0].backbone is None):
        raise ValueError(f"--save {save} keeps one classifier: give one model, not pixels, and linear or finetune")


def judge(
    model: EvalModel,
    protocols: Sequence[Protocol],
    sources: tuple[Source, Source],
    truth: tuple[Int[np.ndarray, "S"], Int[np.ndarray, "Q"]],
    *,
    pools: Sequence[Pool],
    ks: Sequence[int],
    seed: int,
    device: torch.device | str,
    precision: Literal["fp32", "bf16"],
    batch: int,
    workers: int,
    note: Note | None = None,
    progress: Callable[[str], Report] | None = None,
) -> list[dict[str, Any]]:
    """Judge one model by labels that are known to match (`match_labels`); arguments as for `evaluate`."""
    if not protocols:
        return []
    _, backbone, size, mean, std, channels, value_range = model
    how: dict[str, Any] = {
        "size": size,
        "mean": mean,
        "std": std,
        "channels": channels,
        "value_range": value_range,
    }
    how |= {"batch": batch, "workers": workers}
    sets = []
    for part, source, labels in zip(("train", "test"), sources, truth, strict=True):
        how["progress"] = progress(f"{model.name}: {part}") if progress else None
        if backbone is None:
            taken = pixels(source, **how)
        else:
            taken = extract(backbone, source, **how, pools=pools, device=device, precision=precision)
        if taken.skipped and note:
            note(f"{part}: {len(taken.skipped)} of {len(source)} images skipped, first: {taken.skipped[0]}")
        sets.append((taken.values, labels[taken.rows]))
    (train_values, train_labels), (test_values, test_labels) = sets
    rows = []
    for name in train_values:
        known, asked = _labelled(train_values[name], train_labels), _labelled(test_values[name], test_labels)
        for protocol in protocols:
            for k, predicted in predict(protocol, known, asked[0], ks, seed, device).items():
                (low, high), right = bootstrap(predicted == asked[1], seed=seed), top1(predicted, asked[1])
                fair, counts = balanced(predicted, asked[1]), (len(known[1]), len(asked[1]))
                row = (model.name, protocol, name, "last", k, right, fair, low, high, *counts)
                rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def predict(
    protocol: Protocol,
    train: Labelled,
    features: np.ndarray,
    ks: Sequence[int],
    seed: int,
    device: torch.device | str,
) -> dict[int | None, np.ndarray]:
    """Classes of the test features by one protocol: for each k, or under None for the linear probe."""
    if protocol == "linear":
        return {None: LinearProbe(seed=seed).fit(*train).predict(features).numpy()}
    values = torch.from_numpy(train[0]).to(device)
    votes = KNN(k=max(ks)).fit(values, train[1]).votes_for(features, ks)
    return {k: total.argmax(1).cpu().numpy() for k, total in votes.items()}


def _labelled(values: np.ndarray, labels: np.ndarray) -> Labelled:
    return (values, labels) if (labels >= 0).all() else (values[labels >= 0], labels[labels >= 0])


def _fitting(ks: Sequence[int] | None, images: int, note: Note) -> tuple[int, ...]:
    """The numbers of neighbors to report; what was asked for explicitly is never dropped."""
    wrong = [k for k in ks or () if not 1 <= k <= images]
    if wrong:
        raise ValueError(f"--k {wrong[0]} with {images} training images; choose k between 1 and {images}")
    fitting = tuple(k for k in ks or KS if k <= images)
    if len(fitting) < len(ks or KS):
        dropped = ", ".join(str(k) for k in KS if k > images)
        note(f"k-NN: k = {dropped} left out, there are {images} training images only")
    return fitting or (images,)


def _once(note: Note) -> Note:
    """Say each thing once, though every model meets the same images."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            note(text)

    return say


def _say(text: str) -> None:
    print(text, file=sys.stderr)
