"""The common linear probe: multinomial logistic regression on standardized frozen features.

One form for every method, so that models can be compared; the methods' own published forms need
thousands of epochs of augmented crops and answer another question. It is deterministic and takes
seconds for ten thousand images.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from ..randomness import fold, key
from .metrics import Array

FEWEST = 20
"""held-out images without which a comparison of strengths would be noise"""


LEAST_THREADED = 1e9
"""images x features x classes under which BLAS's threads only wait for each other: with two, and another process on
one of two cores, a probe took 20 to 50 times as long as with one"""


@dataclass(frozen=True)
class LinearProbe:
    """The protocol: the strength of the penalty is the one thing chosen, on training images alone.

    The penalty is relaxed for as long as the likelihood of a held-out tenth of the *training* images
    gains, then all training images are fitted. Where a tenth is under 20 images, as with few labels,
    up to five folds take its place (stratified cross-validation).

    The best strength differs a thousandfold between features (measured on 10,000 CIFAR-10 images: 0.001
    for pixels, 1 for random convolutions), so that a fixed one would favor some model. On both, the
    likelihood chose what the test images liked best, and it is steadier than accuracy where a tenth is few.
    """

    strengths: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    """C, the inverse of the penalty, in rising order; where a class has one image only, the middle one"""
    iterations: int = 1000
    """at most, of L-BFGS: enough to converge, for ill-conditioned features too (of untrained networks); stopped
    before that, fits say more of the solver's version than of the features, and the choice follows them"""
    seed: int = 0
    """names the held-out tenth"""

    def fit(self, features: Float[Array, "S D"], labels: Int[Array, "S"]) -> "FittedLinear":
        """Choose the penalty, fit on all images, and fold the standardization into one affine map.

        Args:
            features: of the training images, any scale.
            labels: class of each, at least two different.
        Returns:
            a classifier with `logits` and `predict`.
        Raises:
            ValueError: fewer than two classes.
        """
        x, y = np.asarray(features, dtype=np.float32), np.asarray(labels)
        if len(np.unique(y)) < 2:
            raise ValueError(
                f"linear probe: all {len(y)} training images have class {y[0] if len(y) else '(none)'}; "
                "give two classes"
            )
        scaler = StandardScaler().fit(x)
        x = np.asarray(scaler.transform(x))
        with threadpool_limits(1 if x.size * len(np.unique(y)) < LEAST_THREADED else None):
            strength, loss = self._choose(x, y, held_out_parts(y, self.seed))
            model = self._fit(x, y, strength)
        weight, bias = model.coef_ / scaler.scale_, model.intercept_
        bias = bias - weight @ scaler.mean_
        if len(model.classes_) == 2:  # scikit-learn keeps the second class alone, against 0
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        arrays = (weight.astype(np.float32), bias.astype(np.float32), model.classes_)
        return FittedLinear(*map(torch.from_numpy, arrays), strength=strength, loss=loss)

    def _choose(self, x: np.ndarray, y: np.ndarray, parts: list[Bool[np.ndarray, "S"]]) -> tuple[float, float | None]:
        if not parts:
            return self.strengths[len(self.strengths) // 2], None
        best, strength, models = math.inf, self.strengths[0], [None] * len(parts)
        for c in self.strengths:
            models = [self._fit(x[~held], y[~held], c, model) for held, model in zip(parts, models, strict=True)]
            losses = [self._loss(model, x[held], y[held]) for held, model in zip(parts, models, strict=True)]
            if (loss := float(np.mean(losses))) >= best:
                break  # it falls, then rises; weaker penalties are also the slow ones
            best, strength = loss, c
        return strength, best

    def _loss(self, model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> float:
        chance = model.predict_proba(x).astype(np.float64)
        return float(log_loss(y, chance / chance.sum(1, keepdims=True), labels=model.classes_))

    def _fit(
        self, x: np.ndarray, y: np.ndarray, c: float, start: LogisticRegression | None = None
    ) -> LogisticRegression:
        model = start or LogisticRegression(max_iter=self.iterations, tol=1e-4, warm_start=True)
        model.C = c
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopping at `iterations` is meant
            return model.fit(x, y)


@dataclass(frozen=True)
class FittedLinear:
    """An affine map from raw features to one logit a class."""

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, "C"]
    classes: Int[Tensor, "C"]
    """the label that each logit stands for"""
    strength: float
    """the C that was chosen"""
    loss: float | None
    """mean log-loss of the held-out training images at that C, in nats; None: none could be held out"""

    def logits(self, features: Float[Array, "S D"]) -> Float[Tensor, "S C"]:
        """Return unnormalized log-probabilities, one column for each of `classes`."""
        return torch.as_tensor(features).to(self.weight) @ self.weight.T + self.bias

    def predict(self, features: Float[Array, "S D"]) -> Int[Tensor, "S"]:
        """Return the likeliest class of each image."""
        return self.classes[self.logits(features).argmax(1)]


def _held_out(labels: np.ndarray, seed: int) -> Bool[np.ndarray, "S"]:
    """A tenth of each class, rounded down: no class loses its last image."""
    order = key(seed, "probe").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    ranked = labels[order]
    rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)  # place within its class
    held = np.zeros(len(labels), dtype=bool)
    held[order] = rank % 10 == 9
    return held


def held_out_parts(labels: np.ndarray, seed: int) -> list[Bool[np.ndarray, "S"]]:
    """Parts of the training images to choose by: a tenth, or folds where a tenth would be noise.

    Returns:
        masks, True = held out; every class has an image outside each. None where a class has one image only.
    """
    held = _held_out(labels, seed)
    if held.sum() >= FEWEST:
        return [held]
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < 2:
        return []
    folds = StratifiedKFold(min(5, fewest), shuffle=True, random_state=fold(seed, "probe", "folds") % 2**32)
    masks = np.zeros((folds.get_n_splits(), len(labels)), dtype=bool)
    for mask, (_, places) in zip(masks, folds.split(labels, labels), strict=True):
        mask[places] = True
    return list(masks)
