"""Weighted k-nearest-neighbor classification of frozen features: no training, no choices to tune.

Each test image asks its k most similar training images for their class; a neighbor at cosine
similarity s has exp(s / T) votes. It is the quickest honest reading of what features hold, and the
monitor of pre-training since DINO.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .metrics import Array

CELLS = 1 << 24
"""similarities held at once: 64 MiB of fp32, whatever the sizes of the two sets"""


@dataclass(frozen=True)
class KNN:
    """The protocol and its two constants.

    Wu et al. 2018, section 3.4 (arXiv:1805.01978); DINO's and iBOT's `eval_knn.py`.
    Differs from the original: any number of test images (the original needs at least 100).
    """

    k: int = 20
    """neighbors that vote; DINO and iBOT report the best of 10, 20, 100, 200"""
    temperature: float = 0.07
    """T: a neighbor at cosine similarity s has exp(s / T) votes"""

    def fit(self, features: Float[Array, "S D"], labels: Int[Array, "S"], classes: int | None = None) -> "FittedKNN":
        """Keep the normalized training features, on the device they are on.

        Args:
            features: of the training images, any scale; computed in fp32.
            labels: class of each, 0 ... C-1.
            classes: C; None: the largest label plus one.
        Returns:
            a classifier with `votes`, `votes_for` and `predict`.
        Raises:
            ValueError: k exceeds the training images, a label lies outside 0 ... C-1, or T is too small.
        """
        bank = normalize(torch.as_tensor(features).float(), dim=1)
        truth = torch.as_tensor(labels).to(bank.device, torch.int64)
        classes = int(truth.max()) + 1 if classes is None else classes
        if not 0 <= int(truth.min()) <= int(truth.max()) < classes:
            raise ValueError(
                f"k-NN labels run from {int(truth.min())} to {int(truth.max())}, "
                f"not inside 0 ... {classes - 1}; leave unlabelled images (-1) out"
            )
        if self.temperature < 0.0125:  # exp(1 / T) votes must stay far inside fp32
            raise ValueError(f"k-NN temperature {self.temperature} overflows the votes; use 0.07, at least 0.0125")
        fitted = FittedKNN(self, bank, truth, classes)
        fitted.check((self.k,))
        return fitted


@dataclass(frozen=True)
class FittedKNN:
    """A training set that answers for test features."""

    protocol: KNN
    bank: Float[Tensor, "S D"]
    """l2-normalized training features, fp32"""
    labels: Int[Tensor, "S"]
    classes: int

    def check(self, ks: Sequence[int]) -> None:
        """Refuse a k without enough training images to vote."""
        for k in ks:
            if not 1 <= k <= len(self.bank):
                raise ValueError(
                    f"k-NN with k = {k} needs at least k training images and has {len(self.bank)}; "
                    f"choose k between 1 and {len(self.bank)}, or give more training images"
                )

    def votes(self, features: Float[Array, "Q D"]) -> Float[Tensor, "Q C"]:
        """Sum the votes for each class: sum over the k neighbors of a class of exp(similarity / T)."""
        return self.votes_for(features, (self.protocol.k,))[self.protocol.k]

    def votes_for(self, features: Float[Array, "Q D"], ks: Sequence[int]) -> dict[int, Float[Tensor, "Q C"]]:
        """Votes for several k from one neighbor search, the largest k's.

        Args:
            features: of the test images, any scale and any number.
            ks: numbers of neighbors, each at most the number of training images.
        Returns:
            for each k the votes, fp32 on the bank's device.
        Raises:
            ValueError: a k exceeds the training images.
        """
        self.check(ks)
        queries = normalize(torch.as_tensor(features).to(self.bank.device).float(), dim=1)
        votes = {k: queries.new_zeros(len(queries), self.classes) for k in ks}
        for rows in self._chunks(len(queries)):
            similarity, neighbor = (queries[rows] @ self.bank.T).topk(max(ks), dim=1)  # [q k], best first
            weight, label = (similarity / self.protocol.temperature).exp(), self.labels[neighbor]
            for k, total in votes.items():
                total[rows] = total[rows].scatter_add(1, label[:, :k], weight[:, :k])
        return votes

    def predict(self, features: Float[Array, "Q D"]) -> Int[Tensor, "Q"]:
        """Return the class with most votes for each test image."""
        return self.votes(features).argmax(1)

    def _chunks(self, count: int) -> Iterator[slice]:
        rows = max(1, CELLS // len(self.bank))
        return (slice(start, start + rows) for start in range(0, count, rows))
