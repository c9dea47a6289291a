"""The labels of a training and a test set: present, more than one, and of the same classes."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from ..data.record import Source

Note = Callable[[str], None]


def match_labels(train: Source, test: Source, note: Note) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "Q"]]:
    """Read both sets' labels, the test set's in the numbers of the training set.

    Folders number their classes by sorted name, so that two sets are matched by name where both have
    names; sets without names (tar shards, some parquet files) are taken to use the same numbers.

    Args:
        train: gives the numbers.
        test: is renumbered.
        note: told of images without a label, and of test classes that no training image has.
    Returns:
        class of each training and each test image, -1 unknown.
    Raises:
        ValueError: no labels, one class only, or classes of different names.
    """
    known, asked = _labels(train, "training", note), _labels(test, "test", note)
    present = np.unique(known[known >= 0])
    if len(present) < 2:
        name = train.classes[present[0]] if train.classes else present[0]
        raise ValueError(
            f"all {len(known)} training images have one class, {name}; give --train images of at least two classes"
        )
    if train.classes and test.classes:
        asked = np.where(asked >= 0, _renumber(train.classes, test.classes)[asked], -1)
    unseen = np.setdiff1d(asked[asked >= 0], present)
    if len(unseen):
        names = [train.classes[i] if train.classes and i < len(train.classes) else i for i in unseen]
        note(f"test classes without a training image can only be missed: {_list(names)}")
    return known, asked


def _labels(source: Source, part: str, note: Note) -> Int[np.ndarray, "S"]:
    labels = source.labels
    if labels is None or not (np.asarray(labels) >= 0).any():
        raise ValueError(
            f"the {part} images have no labels; put them in one folder a class, add key.cls to tar shards "
            "or a column `label` to parquet (embed and show need none)"
        )
    labels = np.asarray(labels, dtype=np.int64)
    missing = int((labels < 0).sum())
    if missing:
        note(f"{part}: {missing} of {len(labels)} images have no label and are left out")
    return labels


def renumbered(labels: Int[np.ndarray, "S"], source: Source, classes: list[str]) -> Int[np.ndarray, "S"]:
    """Labels of a source in the numbers of a classifier; a source without names uses those numbers.

    Raises:
        ValueError: the source has a class that the classifier does not know.
    """
    names = source.classes or [str(i) for i in range(len(classes))]
    if not source.classes and len(labels) and int(labels.max()) >= len(classes):
        raise ValueError(f"label {int(labels.max())} of {source.name}; the classifier has {len(classes)} classes")
    if source.classes:
        foreign = [names[i] for i in np.unique(labels[labels >= 0]) if names[i] not in classes]
        if foreign:
            raise ValueError(
                f"the classifier does not know {_list(foreign)} of {source.name}; it knows {_list(classes)}"
            )
        numbers = np.array([classes.index(name) if name in classes else -1 for name in names])
        return np.where(labels >= 0, numbers[labels], -1)
    return labels


def _renumber(train: list[str], test: list[str]) -> Int[np.ndarray, "C"]:
    """For each test class the training set's number of the same name."""
    absent, extra = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if absent or extra:
        sides = (("train", absent), ("test", extra))
        text = "; ".join(f"only in --{side}: {_list(names)}" for side, names in sides if names)
        raise ValueError(f"training and test images have different classes; {text}; give both the same")
    return np.asarray([train.index(name) for name in test])


def _list(names: list, most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
