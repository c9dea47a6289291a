"""Few labels: subsets of the training images, stratified by class, and several of them.

One draw of ten images a class says as much about the draw as about the features, so that a low-shot
number is a mean over draws with its deviation.
"""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ..config import UsageError
from ..data.record import Source, Subset
from ..randomness import key

ALL = "all"
"""every label: beside few labels, in one call"""


@dataclass(frozen=True)
class Shots:
    """How many labels: a part of each class, or a number of each."""

    text: str
    """1%, 10% or 5, as it was asked for"""
    part: float = 0.0
    """fraction of each class, at least one image; 0: `each`"""
    each: int = 0
    """images of each class"""

    @classmethod
    def parse(cls, text: str) -> "Shots":
        """Read `1%`, `10%` or `5`.

        Raises:
            UsageError: it is neither.
        """
        percent, number = re.fullmatch(r"(\d+(?:\.\d+)?)%", text), re.fullmatch(r"\d+", text)
        if percent and 0 < float(percent[1]) <= 100:
            return cls(text, part=float(percent[1]) / 100)
        if number and int(text) > 0:
            return cls(text, each=int(text))
        raise UsageError(f"--shots {text}: give a part of the labels (1%, 10%) or images a class (5)")

    def draw(self, labels: Int[np.ndarray, "S"], seed: int) -> Int[np.ndarray, "m"]:
        """Choose images of each class.

        Args:
            labels: of the training images, all known.
            seed: names the draw; a larger number of shots contains the smaller one of the same seed.
        Returns:
            places in `labels`, in rising order.
        Raises:
            ValueError: a class has fewer images than that.
        """
        order = key(seed, "shots").permutation(len(labels))
        chosen = []
        for label in np.unique(labels):
            there = order[labels[order] == label]
            wanted = self.each or max(1, round(self.part * len(there)))
            if wanted > len(there):
                raise ValueError(
                    f"--shots {self.text}: class {label} has {len(there)} training images; give at most {len(there)}"
                )
            chosen.append(there[:wanted])
        return np.sort(np.concatenate(chosen))


def few(source: Source, shots: str | None, seed: int) -> Source:
    """The images that are learned from with few labels: those that `evaluate` draws from the same DATA, all readable.

    Args:
        source: all images; the unlabelled ones are left out.
        shots: 1%, 10% or 5 a class; None: the source as it is.
        seed: names the draw, as the first of `evaluate --seed`.
    Raises:
        ValueError: there are no labels, or a class has fewer images.
    """
    if shots is None:
        return source
    if source.labels is None:
        raise ValueError(f"--shots {shots} draws images of each class and {source.name} has no labels; leave it out")
    known = np.flatnonzero(source.labels >= 0)
    return Subset(source, known[Shots.parse(shots).draw(source.labels[known], seed)])
