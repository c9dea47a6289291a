"""The classes that a source teaches: present, named, more than one."""

import numpy as np

from .record import Source


def class_names(source: Source, part: str = "training") -> list[str]:
    """Names of a source's classes by label; where they have none, their numbers.

    Raises:
        ValueError: no labels, images without one, or one class only; says what to do.
    """
    labels = source.labels
    if labels is None or not (np.asarray(labels) >= 0).any():
        raise ValueError(
            f"{source.name}: the {part} images have no labels, and a classifier learns from them; put them in one "
            f"folder a class, add key.cls to tar shards or a column `label` to parquet"
        )
    labels = np.asarray(labels)
    missing = int((labels < 0).sum())
    if missing:
        raise ValueError(
            f"{source.name}: {missing} of {len(labels)} {part} images have no label; label them or leave them out"
        )
    names = list(source.classes) if source.classes else [str(i) for i in range(int(labels.max()) + 1)]
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"{source.name}: all {len(labels)} {part} images have one class, {names[int(labels[0])]}; "
            f"give images of at least two classes"
        )
    return names
