"""What a data source is: a sequence of records with random access.

Random access is what makes resuming one integer. An index of a million images must not be a million
Python objects (each forked worker would copy them page by page as it counts references), so names
are one blob of bytes with offsets, and all else is arrays.
"""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int64

MAX_BYTES = 1 << 30
"""largest image file that is read, in bytes"""

IMAGE_SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp"])
"""file endings that are images, in any case"""


class Record(NamedTuple):
    """One image as it is stored."""

    data: bytes | np.ndarray
    """the file's bytes, or ready pixels uint8 [H W C]"""
    label: int
    """class, -1 unknown"""
    key: str
    """a name for people: path below the folder, member of the shard, file#row"""


class BadImage(ValueError):
    """An image that cannot be read: its key, and why."""

    def __init__(self, key: str, why: str):
        super().__init__(key, why)
        self.key, self.why = key, why

    def __str__(self) -> str:
        return f"{self.key}: {self.why}"


@runtime_checkable
class Source(Protocol):
    """A sequence of records. `source[i]` raises BadImage when the bytes cannot be had."""

    name: str
    """the DATA that was asked for"""
    classes: list[str] | None
    """class names by label; None: no labels, or labels without names"""
    labels: np.ndarray | None
    """int64 [n], -1 unknown; None: no labels"""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...


class Names:
    """Strings of bytes in two arrays: a blob and n + 1 offsets."""

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        names = list(names)
        ends = np.zeros(len(names) + 1, np.int64)
        np.cumsum([len(name) for name in names], out=ends[1:])
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> bytes:
        return self.blob[self.ends[i] : self.ends[i + 1]].tobytes()


class LabelRows:
    """Several labels an image, in two arrays: image i has `labels[ends[i] : ends[i + 1]]`.

    Args:
        labels: of all images, one after the other.
        ends: n + 1 offsets, the first 0.
        classes: how many there are; every label is smaller.
    """

    def __init__(self, labels: Int[np.ndarray, "m"], ends: Int64[np.ndarray, "e"], classes: int):
        self.labels, self.ends, self.classes = labels, ends, classes

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "LabelRows":
        """From the labels of each image."""
        labels = np.array([label for row in rows for label in row], np.int64)
        return cls(labels, np.cumsum([0, *map(len, rows)], dtype=np.int64), int(labels.max(initial=-1)) + 1)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Int[np.ndarray, "k"]) -> "LabelRows":
        """The rows of some images, in the order of `index`."""
        first = self.ends[:-1][index]
        count = self.ends[1:][index] - first
        ends = np.concatenate([[0], np.cumsum(count)])
        place = np.repeat(first - ends[:-1], count) + np.arange(ends[-1])
        return LabelRows(self.labels[place], ends, self.classes)

    def dense(self, classes: int | None = None) -> Bool[np.ndarray, "n C"]:
        """A column for each class: n x C bytes, for as many images as are judged; None: the classes there are."""
        rows = np.zeros((len(self), self.classes if classes is None else classes), dtype=bool)
        rows[np.repeat(np.arange(len(self)), np.diff(self.ends)), self.labels] = True
        return rows


class Subset:
    """Some records of a source, in the order of `index`; classes and labels come along."""

    def __init__(self, source: Source, index: Int64[np.ndarray, "m"]):
        self.source, self.index = source, index
        self.name, self.classes = source.name, source.classes
        self.labels = None if source.labels is None else source.labels[index]
        rows = label_rows(source)
        self.label_rows = None if rows is None else rows[index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Record:
        return self.source[int(self.index[i])]


def label_rows(source: Source) -> LabelRows | None:
    """Of a source whose images have several labels each: lists in parquet's `label` or a tar's key.cls."""
    return getattr(source, "label_rows", None)


def label_of(labels: np.ndarray | None, i: int) -> int:
    """The label of record i, -1 where there is none."""
    return -1 if labels is None else int(labels[i])


def readable(name: bytes) -> str:
    """A file name as text that can be printed and stored on one line, whatever its bytes."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def read_range(path: str | bytes, offset: int, size: int | None, key: str) -> bytes:
    """Read `size` bytes of a file at `offset`; None: up to its end.

    The file is opened for each read: a few microseconds beside a millisecond of decoding, and no
    descriptor is shared between threads or forked workers.

    Raises:
        BadImage: the range is larger than MAX_BYTES, cut short or unreadable.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            wanted = os.fstat(file.fileno()).st_size - offset if size is None else size
            if wanted > MAX_BYTES:
                raise BadImage(key, f"{wanted} bytes, more than the limit of {MAX_BYTES}")
            data = os.pread(file.fileno(), wanted, offset)
    except OSError as error:
        raise BadImage(key, f"cannot be read: {error.strerror or error}") from error
    if len(data) < wanted:
        raise BadImage(key, f"cut short: {len(data)} of {wanted} bytes")
    return data
