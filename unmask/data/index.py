"""The index of a large data set: a fixed-width record an image, in files that are mapped into memory.

    records.bin   where each image lies: RECORD, 32 bytes
    keys.bin      its name, one after the other
    many.bin      labels, int32, where images have several each, one image's after the other's
    many_ends.bin where they end: int64, one more than there are images
    index.json    sizes, checksums and class names; written last

Ten million images are half a gigabyte of file and next to nothing of a process: pages come in when they
are read, once for all processes of a machine, and loader workers inherit the mapping. Building it writes
file by file and holds what is known of few of them.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from .record import LabelRows, Names, readable

RECORD = np.dtype([("offset", "<i8"), ("key_end", "<i8"), ("label", "<i8"), ("size", "<u4"), ("shard", "<u4")])
"""byte range in a shard, end of the name in keys.bin, class (-1: unknown)"""
_CHUNK = 1 << 20


class Part(NamedTuple):
    """What is known of some images of one file, in few arrays."""

    offset: Int64[np.ndarray, "n"]
    size: Int64[np.ndarray, "n"]
    keys: Names
    words: list[bytes]
    """the different label texts"""
    word: Int64[np.ndarray, "n"]
    """which of them each image has; -1: none"""

    @classmethod
    def of(cls, offset: list[int], size: list[int], keys: list[bytes], words: list[bytes | None]) -> "Part":
        """From a list of each, as long as there are images."""
        place = {word: i for i, word in enumerate(dict.fromkeys(word for word in words if word is not None))}
        word = np.array([-1 if each is None else place[each] for each in words], np.int64)
        return cls(np.array(offset, np.int64), np.array(size, np.int64), Names.of(keys), list(place), word)


class Writer:
    """Writes an index part by part into an empty folder; what it holds is the label texts."""

    def __init__(self, folder: Path):
        self.folder, self.count, self.place = folder, 0, 0
        self.known: dict[bytes, int] = {}  # label text -> its number by first appearance
        self.listed, self.most = 0, -1  # of labels in lists: how many, and the largest
        self.files = {name: (folder / name).open("wb") for name in ("records.bin", "keys.bin")}

    def add(self, shard: int, part: Part, rows: LabelRows | None = None) -> None:
        """Append some images of file number `shard`; `rows` are their labels, where images have several each."""
        if rows is not None:
            self._add_rows(rows)
        records = np.empty(len(part.offset), RECORD)
        records["shard"], records["offset"] = shard, part.offset
        records["size"] = np.minimum(part.size, 2**32 - 1)  # refused on reading: record.MAX_BYTES
        records["key_end"] = part.keys.ends[1:] + self.place
        numbers = np.array([self.known.setdefault(word, len(self.known)) for word in part.words] + [-1], np.int64)
        records["label"] = numbers[part.word]  # -1 is the last
        self.files["records.bin"].write(records.tobytes())
        self.files["keys.bin"].write(part.keys.blob.tobytes())
        self.count += len(records)
        self.place += len(part.keys.blob)

    def _add_rows(self, rows: LabelRows) -> None:
        if "many.bin" not in self.files:
            self.files |= {name: (self.folder / name).open("wb") for name in ("many.bin", "many_ends.bin")}
            self.files["many_ends.bin"].write(bytes(8 * (1 + self.count)))  # images of earlier files have none
        self.files["many.bin"].write(rows.labels.astype("<i4").tobytes())
        self.files["many_ends.bin"].write((rows.ends[1:] + self.listed).astype("<i8").tobytes())
        self.listed += len(rows.labels)
        self.most = max(self.most, rows.classes - 1)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def finish(self, classes: list[str] | None = None) -> None:
        """Number the labels and seal; `classes` are their names, where the files say so themselves."""
        self.close()
        number, spelled = number_vocabulary(self.known)
        if number and self.count:
            table = np.array([*(number[word] for word in self.known), -1], np.int64)
            rows = np.memmap(self.folder / "records.bin", RECORD, "r+")
            for start in range(0, self.count, _CHUNK):
                some = rows["label"][start : start + _CHUNK]
                some[:] = table[some]
            rows.flush()
            del rows
        about = {
            "records": self.count,
            "labelled": bool(number),
            "most": max([*number.values(), self.most]),
            "classes": spelled or classes,
            "sizes": {file.name: file.stat().st_size for file in self.folder.iterdir()},
            "checksums": {name: _checksum(self.folder / name) for name in self.files},
        }
        (self.folder / "index.json").write_text(json.dumps(about))


class Index:
    """An index that a Writer wrote, mapped.

    Attributes: records, RECORD each; classes, names of the labels or None; labels int64 [n] or None;
    most, the largest label; many, LabelRows where images have several, or None.
    """

    def __init__(self, folder: Path):
        about = json.loads((folder / "index.json").read_text())
        self.records = _mapped(folder / "records.bin", RECORD)
        self.blob = _mapped(folder / "keys.bin", np.dtype(np.uint8))
        self.classes: list[str] | None = about["classes"]
        self.labels: np.ndarray | None = self.records["label"] if about["labelled"] else None
        self.most: int = about["most"]
        self.many: LabelRows | None = None
        if (folder / "many.bin").exists():
            labels = _mapped(folder / "many.bin", np.dtype("<i4"))
            self.many = LabelRows(labels, _mapped(folder / "many_ends.bin", np.dtype("<i8")), self.most + 1)

    def __len__(self) -> int:
        return len(self.records)

    def key(self, i: int) -> bytes:
        """The name of image i."""
        start = int(self.records["key_end"][i - 1]) if i else 0
        return self.blob[start : int(self.records["key_end"][i])].tobytes()


def is_sound(folder: Path) -> bool:
    """Whether the files of an index are those that were written: all there, whole, unchanged."""
    try:
        about = json.loads((folder / "index.json").read_text())
        whole = all((folder / name).stat().st_size == size for name, size in about["sizes"].items())
        return whole and all(_checksum(folder / name) == kept for name, kept in about["checksums"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def number_words(words: list[bytes | None]) -> tuple[np.ndarray | None, list[str] | None]:
    """Turn label texts into integers: as they are, or else sorted words numbered from 0.

    Returns:
        int64 [n] with -1 for None, or None if all are None; the words, if they were no integers.
    """
    number, classes = number_vocabulary({word for word in words if word is not None})
    if not number:
        return None, None
    return np.array([-1 if word is None else number[word] for word in words], np.int64), classes


def number_vocabulary(known: Iterable[bytes]) -> tuple[dict[bytes, int], list[str] | None]:
    """Give each label text its integer, and the words their names, if they are no integers."""
    known = sorted(known)
    try:
        return {word: int(word) for word in known}, None
    except ValueError:
        return {word: i for i, word in enumerate(known)}, [readable(word) for word in known]


def _mapped(file: Path, kind: np.dtype) -> np.ndarray:
    if not file.stat().st_size:  # there is nothing to map
        return np.empty(0, kind)
    return np.memmap(file, kind, "r").view(np.ndarray)


def _checksum(file: Path) -> int:
    found = 0
    with file.open("rb", buffering=0) as raw:
        while block := raw.read(_CHUNK):
            found = zlib.crc32(block, found)
    return found
