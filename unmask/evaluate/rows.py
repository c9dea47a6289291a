"""A row of results: what one protocol said of the test images, scored, with its interval."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from .metrics import balanced, bootstrap, top1
from .shots import Shots

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


class Answer(NamedTuple):
    """What one protocol said of the test images, and its row."""

    row: dict[str, Any]
    predicted: Int[np.ndarray, "R Q"]
    """classes, one line for each draw of training images"""
    labels: Int[np.ndarray, "Q"]
    places: Int[np.ndarray, "Q"]
    """of the test images in their source"""


def scored(
    names: tuple[str, str, str, str | int, int | None],
    predicted: Sequence[Int[np.ndarray, "Q"]],
    labels: Int[np.ndarray, "Q"],
    places: Int[np.ndarray, "Q"],
    n_train: int,
    *,
    seed: int,
    shots: Shots | None = None,
    seeds: Sequence[int] = (),
    extra: dict[str, Any] | None = None,
) -> Answer:
    """Score predictions: top-1 and balanced accuracy, averaged over draws, and the interval over test images.

    Args:
        names: model, protocol, features, layer, k.
        predicted: classes of the test images, for each draw of training images.
        labels: their true classes.
        places: of the test images in their source.
        n_train: training images of a draw.
        seed: of the bootstrap.
        shots: how many labels were learned from; None: all.
        seeds: of the draws.
        extra: more for the row.
    """
    said = np.stack(list(predicted))
    right = (said == labels).mean(0) if len(said) > 1 else said[0] == labels
    low, high = bootstrap(right, seed=seed)
    scores, fair = [top1(each, labels) for each in said], [balanced(each, labels) for each in said]
    values = (*names, float(np.mean(scores)), float(np.mean(fair)), low, high, n_train, len(labels))
    row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    if shots is not None:
        deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
        row |= {"shots": shots.text, "seeds": list(seeds), "deviation": deviation}
    return Answer(row | (extra or {}), said, labels, places)
