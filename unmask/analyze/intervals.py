"""Means with intervals: what another sample of images from the same source would have given."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num

from ..randomness import key

REPEATS = 1000
"""bootstrap resamples"""


class Estimate(NamedTuple):
    """A statistic over images and its 95 % interval, of any one shape."""

    value: Float[np.ndarray, "*s"]
    low: Float[np.ndarray, "*s"]
    high: Float[np.ndarray, "*s"]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: value, low, high."""
        return {name: plain(part) for name, part in self._asdict().items()}


def resamples(images: int, seed: int, repeats: int = REPEATS) -> Float[np.ndarray, "R S"]:
    """Weights of the images in every resample, each row adding up to 1 (Efron 1979).

    One draw serves all statistics of one set of images, so that models are compared on the same resamples.
    """
    if images < 1:
        raise ValueError("bootstrap: no image was measured; give DATA with at least one readable image")
    drawn = key(seed, "analyze", "bootstrap").multinomial(images, np.full(images, 1 / images), size=repeats)
    return drawn / images


def mean_of(values: Num[np.ndarray, "S *s"], seed: int = 0) -> Estimate:
    """Mean over images, the first axis, with its percentile interval."""
    return ratio_of(values, np.ones((len(values),) + (1,) * (np.ndim(values) - 1)), seed)


def ratio_of(above: Num[np.ndarray, "S *s"], below: Num[np.ndarray, "S *t"], seed: int = 0) -> Estimate:
    """Sum of `above` over sum of `below`, over images, with its percentile interval.

    The images of a resample enter both sums: the interval is that of the ratio, not of its parts. nan
    where the sum below is 0; resamples in which it is are left out of the interval.
    """
    weights = resamples(len(above), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.asarray(np.mean(above, axis=0, dtype=np.float64) / np.mean(below, axis=0, dtype=np.float64))
        drawn = _weighted(weights, above) / _weighted(weights, below)
    return Estimate(value, *percentiles(drawn))


def percentiles(drawn: Float[np.ndarray, "R *s"]) -> tuple[Float[np.ndarray, "*s"], Float[np.ndarray, "*s"]]:
    """The middle 95 % of a statistic's resamples; those that are nan are left out."""
    finite = np.isfinite(drawn)
    if finite.all():
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    else:
        none = ~finite.any(0)
        low, high = np.nanquantile(np.where(finite, drawn, np.where(none, 0, np.nan)), (0.025, 0.975), axis=0)
        low, high = np.where(none, np.nan, low), np.where(none, np.nan, high)
    return np.asarray(low), np.asarray(high)


def _weighted(weights: Float[np.ndarray, "R S"], values: Num[np.ndarray, "S *s"]) -> Float[np.ndarray, "R *s"]:
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    return (weights @ flat).reshape(len(weights), *np.shape(values)[1:])


def plain(value: Any) -> Any:
    """Turn arrays, tensors and NumPy numbers into what JSON holds; nan and infinity become null."""
    if isinstance(value, Estimate):
        return value.plain()
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
