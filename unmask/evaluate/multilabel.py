"""Images with several labels each: k-NN and linear classifiers by scores, judged by mean average precision."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

from ..data.record import Source, label_rows
from ..randomness import key
from .knn import CELLS, KNN
from .metrics import Interval, bootstrap
from .rows import COLUMNS, Answer
from .take import EvalModel, Settings, take

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""C of the one-against-the-rest logistic regressions, chosen on a held-out tenth of the training images"""
RESAMPLES = 200
"""of the bootstrap: each computes the average precision of every class anew"""


def match_rows(train: Source, test: Source) -> tuple[Bool[np.ndarray, "S C"], Bool[np.ndarray, "Q C"]] | None:
    """Rows of labels of both sets, of equally many classes; None: neither has any.

    Raises:
        ValueError: one set has rows of labels and the other has not, or classes of other names.
    """
    known, asked = label_rows(train), label_rows(test)
    if known is None and asked is None:
        return None
    if known is None or asked is None:
        part = "test" if asked is None else "training"
        raise ValueError(f"the {part} images have no lists of labels and the others have; give both the same kind")
    if train.classes and test.classes and train.classes != test.classes:
        raise ValueError("training and test images have different classes or another order of them; give both the same")
    width = max(known.classes, asked.classes)
    known, asked = known.dense(width), asked.dense(width)
    if not (known.any(0) & ~known.all(0) & asked.any(0)).any():
        raise ValueError("no class that only some training images have occurs in the test images; nothing to judge")
    return known, asked


def answer(
    model: EvalModel,
    protocols: Sequence[str],
    sources: tuple[Source, Source],
    truth: tuple[Bool[np.ndarray, "S C"], Bool[np.ndarray, "Q C"]],
    how: Settings,
    *,
    store: Any = None,
    data: tuple[str, str] = ("", ""),
    note: Any = None,
    progress: Any = None,
) -> list[Answer]:
    """Judge one model by rows of labels, on its last layer; arguments as for `answers.answer`.

    Returns:
        answers whose rows hold map (mean average precision), map_low and map_high beside top1: the part of
        images whose best-scored class is among their labels. `balanced` is None.
    """
    if set(protocols) - {"knn", "linear"} or how.shots != (None,) or how.layers in ("best", "all"):
        raise ValueError("images with several labels: knn and linear of the last layer, on all images; leave the rest")
    if how.probe != "common":
        raise ValueError(
            f"images with several labels have the common linear probe alone; leave --probe {how.probe} out"
        )
    pools = ("pixels",) if model.backbone is None else how.pools or model.pools
    kinds = [] if model.backbone is None else [name for pool in pools for name in pool.split("+")]
    given: dict[str, Any] = {"store": store, "note": note, "progress": progress}
    train = take(model, sources[0], truth[0], kinds, (), how, data=data[0], part="train", **given)
    test = take(model, sources[1], truth[1], kinds, (), how, data=data[1], part="test", **given)
    answers = []
    for pool in pools:
        known, asked = train.matrix("last", pool), test.matrix("last", pool)
        for protocol in dict.fromkeys(protocols):
            scores: dict[int | None, np.ndarray] = {}
            scores |= {None: linear_scores(known, train.labels, asked, how.seed)} if protocol == "linear" else {}
            for k in how.ks if protocol == "knn" else ():
                scores[k] = knn_scores(known, train.labels, asked, k, how.device)
            for k, score in scores.items():
                right = test.labels[np.arange(len(score)), score.argmax(1)]
                low, high = bootstrap(right, seed=how.seed)
                values = (model.name, protocol, pool, "last", k, float(right.mean()), None, low, high)
                row = dict(zip(COLUMNS, (*values, len(known), len(asked)), strict=True))
                between = _interval(score, test.labels, how.seed)
                row |= {"map": mean_precision(score, test.labels), "map_low": between.low, "map_high": between.high}
                answers.append(Answer(row, right[None].astype(np.int64), np.ones(len(right), np.int64), test.places))
    return answers


def mean_precision(scores: Float[np.ndarray, "Q C"], labels: Bool[np.ndarray, "Q C"]) -> float:
    """Mean over classes of scikit-learn's average precision; classes without a test image are left out."""
    there = labels.any(0)
    return float(average_precision_score(labels[:, there], scores[:, there], average="macro"))


def knn_scores(
    known: Float[np.ndarray, "S D"],
    labels: Bool[np.ndarray, "S C"],
    asked: Float[np.ndarray, "Q D"],
    k: int,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "Q C"]:
    """For each class the share of votes of the k nearest that have it; weights as in `KNN`."""
    bank, votes = normalize(torch.from_numpy(known).to(device), dim=1), torch.from_numpy(labels).to(device).float()
    queries, rows = normalize(torch.from_numpy(asked).to(device), dim=1), max(1, CELLS // len(known))
    found = []
    for start in range(0, len(queries), rows):
        similarity, neighbor = (queries[start : start + rows] @ bank.T).topk(k, dim=1)
        weight = (similarity / KNN().temperature).softmax(1)
        found.append(torch.einsum("qk,qkc->qc", weight, votes[neighbor]).cpu())
    return torch.cat(found).numpy()


def linear_scores(
    known: Float[np.ndarray, "S D"], labels: Bool[np.ndarray, "S C"], asked: Float[np.ndarray, "Q D"], seed: int
) -> Float[np.ndarray, "Q C"]:
    """Probability of each class by its own logistic regression on standardized features."""
    held = key(seed, "multilabel").permutation(len(known)) % 10 == 0
    learnable = labels.any(0) & ~labels.all(0)
    inside = (labels[~held].any(0) & ~labels[~held].all(0)) & learnable

    def fit(x: np.ndarray, y: np.ndarray, strength: float) -> Any:
        return make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000))).fit(
            x, y
        )

    best, chosen = -math.inf, STRENGTHS[len(STRENGTHS) // 2]
    if (inside & labels[held].any(0)).any():
        for strength in STRENGTHS:
            model = fit(known[~held], labels[~held][:, inside], strength)
            score = mean_precision(
                np.asarray(model.predict_proba(known[held])).reshape(held.sum(), -1), labels[held][:, inside]
            )
            if score > best:
                best, chosen = score, strength
    scores = np.zeros((len(asked), labels.shape[1]))
    scores[:, labels.all(0)] = 1.0
    model = fit(known, labels[:, learnable], chosen)
    scores[:, learnable] = np.asarray(model.predict_proba(asked)).reshape(len(asked), -1)[:, -int(learnable.sum()) :]
    return scores


def _interval(scores: Float[np.ndarray, "Q C"], labels: Bool[np.ndarray, "Q C"], seed: int) -> Interval:
    """The percentile bootstrap over test images."""
    draws, found = key(seed, "bootstrap", "map"), []
    for _ in range(RESAMPLES):
        rows = draws.integers(0, len(labels), len(labels))
        if labels[rows].any():
            found.append(mean_precision(scores[rows], labels[rows]))
    low, high = np.quantile(found, (0.025, 0.975))
    return Interval(float(low), float(high))
