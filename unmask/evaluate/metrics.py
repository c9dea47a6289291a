"""How well predictions agree with labels, and how sure that number is."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Num, Shaped
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor

from ..randomness import key

Array = np.ndarray | Tensor


class Interval(NamedTuple):
    """The two ends of a confidence interval, in the unit of the score."""

    low: float
    high: float


def top1(predicted: Int[Array, "S"], labels: Int[Array, "S"]) -> float:
    """Return the fraction of images whose predicted class is right, in [0, 1]."""
    return float(accuracy_score(np.asarray(labels), np.asarray(predicted)))


def balanced(predicted: Int[Array, "S"], labels: Int[Array, "S"]) -> float:
    """Return the mean over classes of the fraction that is right: every class counts the same.

    scikit-learn's balanced accuracy, written as its own definition (macro recall over the classes
    present in `labels`), which stays silent when a class is predicted that no test image has.
    """
    truth = np.asarray(labels)
    present = np.unique(truth)
    return float(recall_score(truth, np.asarray(predicted), labels=present, average="macro"))


def bootstrap(scores: Shaped[Array, "S"], *, seed: int = 0, resamples: int = 10_000, level: float = 0.95) -> Interval:
    """Interval of the mean score, had other test images been drawn from the same source.

    The percentile bootstrap (Efron 1979) over test images. It says nothing about another seed of the
    pre-training. A resample of S images is, for the mean, only a count of each distinct score; the
    counts are multinomial, so that thousands of resamples of any S cost one vectorized draw.
    Where every image scores the same, both ends are that score.

    Args:
        scores: one number an image: right or wrong (bool), or a paired difference in {-1, 0, 1}.
        seed: names the draw; the same seed gives the same interval.
        resamples: bootstrap repetitions.
        level: coverage; 0.95 cuts 2.5 % at each end.
    Returns:
        (low, high), in the unit of the scores.
    Raises:
        ValueError: there is no score.
    Example:
        >>> low, high = bootstrap(np.arange(1000) < 800)
        >>> 0.77 < low < 0.8 < high < 0.83
        True
    """
    array: Num[np.ndarray, "S"] = np.asarray(scores, dtype=np.float64)
    if array.size == 0:
        raise ValueError("bootstrap: no test image was scored; give --test at least one labelled image")
    values, counts = np.unique(array, return_counts=True)
    draws = key(seed, "bootstrap").multinomial(array.size, counts / array.size, size=resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(draws @ values / array.size, (tail, 1 - tail))
    return Interval(float(low), float(high))
