"""The images of a comparison: what all learn from, and what all are judged by."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data.fingerprint import content_hash, fingerprints
from ..data.record import Subset, label_rows
from ..data.sources import Source, Way, holdout_split, open_source, same_place
from ..evaluate.labels import match_labels
from .entries import Entry


class Images(NamedTuple):
    """DATA, parted."""

    train: Source
    """what classifiers learn from, and runs were trained on"""
    test: Source
    """what models are judged by and pictures are drawn of; without labels and --test, the training images"""
    labelled: bool
    """whether models can be judged by labels"""
    apart: bool
    """whether the test images are others than the training images"""
    content: str
    """one name for the bytes of the test images, in their order"""

    @property
    def classes(self) -> int | None:
        """How many classes there are; None: no labels."""
        if not self.labelled:
            return None
        assert self.train.labels is not None
        return len(self.train.classes or np.unique(self.train.labels[self.train.labels >= 0]))


def part(source: Source, test: str | None, entries: Sequence[Entry]) -> Images:
    """Decide what is learned from and what is judged by.

    Args:
        source: DATA.
        test: --test.
        entries: the runs; without --test all must have held the same images out of training.
    Raises:
        ValueError: they have not; or test images of other classes, or without labels.
    """
    if label_rows(source) is not None:
        raise ValueError(
            f"{source.name} has several labels an image; compare judges one class an image: evaluate the runs instead"
        )

    def images(train: Source, test: Source, labelled: bool, apart: bool) -> Images:
        return Images(train, test, labelled, apart, content_hash(fingerprints(test)))

    labelled = source.labels is not None and bool((np.asarray(source.labels) >= 0).any())
    if test is not None:
        judged = open_source(test, "auto" if labelled else "none")
        if labelled:
            match_labels(source, judged, lambda line: None)  # says what is wrong
            judged = with_label(judged)
        return images(source, judged, labelled, True)
    if not labelled:
        return images(source, source, False, False)
    whole = [entry for entry in entries if not entry.run.config.data.holdout]
    if whole:
        had = whole[0].run.config.data.test
        cure = f"give --test DATA, as --test {had}" if had else "give --test DATA, images that no run was trained on"
        raise ValueError(f"{whole[0].spec} held nothing of {source.name} out of training; {cure}")
    ways: set[Way] = {entry.run.config.data.holdout_by for entry in entries}
    moved = [entry for entry in entries if not same_place(entry.run.config.data.train, source.name)]
    if len(ways) > 1 or ("place" in ways and moved):  # in another place the same images may have another order
        raise ValueError(
            f"the runs held images of {source.name} out by {' and '.join(sorted(ways))}"
            + (f", and {moved[0].spec} where they lie elsewhere" if moved else "")
            + "; give --test DATA, images that no run was trained on"
        )
    train, judged = holdout_split(source, way=ways.pop() if ways else "content")
    return images(train, with_label(judged), True, True)


def with_label(source: Source) -> Source:
    """The images of a source that have a label."""
    known = np.flatnonzero(np.asarray(source.labels) >= 0)
    return source if len(known) == len(source) else Subset(source, known)
