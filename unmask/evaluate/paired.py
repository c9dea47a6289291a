"""Models side by side, paired: the same test images were asked of all, so their differences are surer than they."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .metrics import bootstrap
from .rows import Answer


def differences(answers: Sequence[Answer], *, seed: int = 0) -> list[dict[str, Any]]:
    """Compare each model with the first one and with each `untrained:` one, image by image.

    For the same protocol, k, shots and probe. Features are the same where the other model has them, else
    (pixels) its first.

    Args:
        answers: of all models on one test set.
        seed: of the bootstrap.
    Returns:
        rows of model, to, protocol, features, to_features, layer, k, difference (top-1 of model minus that
        of `to`), ci_low, ci_high (95 % bootstrap over the images), n_test.
    """
    names = list(dict.fromkeys(answer.row["model"] for answer in answers))
    references = [name for i, name in enumerate(names) if i == 0 or name.startswith("untrained:")]
    rows = []
    for answer in answers:
        row = answer.row
        for name in references:
            turned = row["model"] in references and names.index(row["model"]) <= names.index(name)
            if turned:  # itself, or a pair that is compared the other way round
                continue
            rivals = [other for other in answers if other.row["model"] == name and _kind(other) == _kind(answer)]
            same = [other for other in rivals if other.row["features"] == row["features"]]
            same = [other for other in same if other.row["layer"] == row["layer"]] or same
            if not rivals:
                continue
            other = (same or rivals)[0]
            rows.append(between(answer, other, seed=seed))
    return rows


def between(answer: Answer, other: Answer, *, seed: int = 0) -> dict[str, Any]:
    """Compare two answers image by image: one row of `differences`."""
    _, mine, theirs = np.intersect1d(answer.places, other.places, return_indices=True)
    change = _right(answer)[mine] - _right(other)[theirs]
    low, high = bootstrap(change, seed=seed)
    kept = ("model", "protocol", "features", "layer", "k", "shots")
    about = {key: answer.row[key] for key in kept if key in answer.row}
    about |= {"to": other.row["model"], "to_features": other.row["features"], "difference": float(change.mean())}
    return about | {"ci_low": low, "ci_high": high, "n_test": len(change)}


def _kind(answer: Answer) -> tuple[Any, ...]:
    return tuple(answer.row.get(key) for key in ("protocol", "k", "shots", "probe"))


def _right(answer: Answer) -> np.ndarray:
    """How often each image was answered right, over the draws of training images."""
    return (answer.predicted == answer.labels).mean(0)
