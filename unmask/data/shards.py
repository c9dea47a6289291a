"""Records at byte ranges of a few large files: tar shards as they are, parquet through a copy.

A tar shard (WebDataset naming: `key.jpg`, `key.cls`) is indexed once and then read by `pread`, so any
member costs the same. Parquet packs rows by the megabyte, so its image bytes are copied once, end to
end, into one file of the cache. Both are then the same source.
"""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np

from .cache import cache_root, cached
from .record import IMAGE_SUFFIXES, Names, Record, label_of, read_range, readable


class Shards:
    """Images at byte ranges of files, described by the arrays of an index.

    Args:
        name: the DATA that was asked for.
        files: the files, by number.
        index: shard, offset, size int64 [n]; keys_blob, keys_ends (see Names); labels int64 [n] or
            absent.
        classes: names of the labels, where they have names.
    """

    def __init__(self, name: str, files: list[Path], index: dict[str, np.ndarray], classes: list[str] | None):
        self.name, self.files, self.classes = name, [str(file) for file in files], classes
        self.shard, self.offset, self.size = index["shard"], index["offset"], index["size"]
        self.keys = Names(index["keys_blob"], index["keys_ends"])
        self.labels: np.ndarray | None = index.get("labels")
        self.label_rows: np.ndarray | None = None
        """bool [n C] where an image has a list of labels"""
        if "many" in index:
            known = index["many"]
            self.label_rows = np.zeros((len(self), max(known.max(initial=-1) + 1, len(classes or []))), dtype=bool)
            self.label_rows[np.repeat(np.arange(len(self)), index["many_counts"]), known] = True

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, i: int) -> Record:
        key = readable(self.keys[i])
        data = read_range(self.files[self.shard[i]], int(self.offset[i]), int(self.size[i]), key)
        return Record(data, label_of(self.labels, i), key)


def open_tar(name: str, files: list[Path]) -> Shards:
    """Open tar shards; the index is built at the first opening and kept in the cache.

    Labels are the integers or words in `key.cls`; for integers, a `classes.json` beside the shards (a
    list) may give names. Directories, links, hidden files and members that are neither image nor
    .cls are passed over: nothing is ever unpacked, so no member's name can do harm.

    Raises:
        ValueError: a shard is compressed, damaged or cut short, or there is no image in any.
    """
    folder = cached("tar", files, lambda building: _index_tars(files, building))
    index, classes = _load(folder)
    if not len(index["offset"]):
        wanted = ", ".join(f"key.{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{name}: no images in {len(files)} tar shards; looked for members {wanted}")
    beside = files[0].parent / "classes.json"
    if classes is None and "labels" in index and beside.is_file():
        classes = [str(word) for word in json.loads(beside.read_text())]
        if index["labels"].max() >= len(classes):
            raise ValueError(f"{beside}: {len(classes)} names for labels up to {index['labels'].max()}")
    return Shards(name, files, index, classes)


def _index_tars(files: list[Path], building: Path) -> None:
    shard, offset, size, keys = [], [], [], []
    words: list[bytes | None] = []
    for number, path in enumerate(files):
        images, classes = _read_headers(path)
        for key, start, length in images:
            shard.append(number)
            offset.append(start)
            size.append(length)
            keys.append(key)
            words.append(classes.get(key))
    _save(building, shard, offset, size, keys, words)


def _read_headers(path: Path) -> tuple[list[tuple[bytes, int, int]], dict[bytes, bytes]]:
    """Read a shard's headers: (key, offset, size) of each image, and the text of each .cls by key."""
    images: list[tuple[bytes, int, int]] = []
    classes: dict[bytes, bytes] = {}
    whole = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb", buffering=0) as raw:
            while (member := tar.next()) is not None:
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - tarfile would keep every header in memory
                if member.size < 0:  # older tarfile would go back and read it again, for ever
                    raise tarfile.ReadError(f"member {member.name!r} has size {member.size}")
                end = member.offset_data + member.size
                if member.isreg() and end > whole:
                    raise tarfile.ReadError(f"member {member.name!r} ends at byte {end}, the file at {whole}")
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")  # WebDataset: the key ends at the first dot
                if not member.isreg() or member.issparse() or not stem:
                    continue
                key = os.fsencode(f"{folder}/{stem}" if folder else stem)
                if suffix.lower() in IMAGE_SUFFIXES:
                    images.append((key, member.offset_data, member.size))
                elif suffix == "cls" and member.size < 4096:
                    classes[key] = os.pread(raw.fileno(), member.size, member.offset_data).strip()
            # tarfile takes a damaged or missing header for the end: only a block of zeros is one
            if os.pread(raw.fileno(), 512, tar.offset) != bytes(512):
                raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset} of {whole}")
    except tarfile.TarError as error:
        if _starts_with(path, b"\x1f\x8b"):
            raise ValueError(f"{path}: compressed; unpack it with gunzip, to read members at any place") from error
        raise ValueError(f"{path}: damaged or cut short ({error}); copy the shard again") from error
    return images, classes


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def open_parquet(name: str, files: list[Path]) -> Shards:
    """Open parquet files in Hugging Face's image layout; their bytes are copied once to the cache.

    The image is the first column of type struct{bytes, path}, whatever its name; where bytes are null
    the file at `path`, from the parquet's folder, is taken. `label` is optional: integers (with names
    in Hugging Face's metadata, or not), words, or lists of integers (several labels an image).

    Raises:
        ValueError: no image column, no rows, not a parquet file, or no room in the cache.
    """
    folder = cached("parquet", files, lambda building: _copy_parquets(files, building))
    index, classes = _load(folder)
    if not len(index["offset"]):
        raise ValueError(f"{name}: no rows in {len(files)} parquet files")
    return Shards(name, [folder / "images.bin"], index, classes)


def _copy_parquets(files: list[Path], building: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size: list[int] = []
    keys: list[bytes] = []
    words: list[bytes | None] = []
    names: list[str] | None = None
    many: list[list[int]] = []
    with (building / "images.bin").open("wb") as out:
        for path in files:
            try:
                table = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path}: not a whole parquet file ({error}); copy it again") from error
            image = image_column(table.schema_arrow, str(path))
            names = names or class_names(table.schema_arrow)
            wanted = sum(table.metadata.row_group(g).total_byte_size for g in range(table.metadata.num_row_groups))
            if wanted > shutil.disk_usage(building).free:
                raise ValueError(f"{path}: needs {wanted >> 20} MiB in {cache_root()}; free some, or set UNMASK_CACHE")
            labelled = "label" in table.schema_arrow.names
            listed = labelled and pa.types.is_list(table.schema_arrow.field("label").type)
            for batch in table.iter_batches(256, columns=[image, *(["label"] if labelled else [])]):
                column = batch.column(image)
                parts = dict(zip((f.name for f in column.type), column.flatten(), strict=True))
                for data, below in zip(parts["bytes"], parts["path"], strict=True):
                    data, below = data.as_buffer(), below.as_py()
                    if data is None and below and (path.parent / below).is_file():
                        data = (path.parent / below).read_bytes()
                    size.append(out.write(data or b""))
                    keys.append((below or f"{path.name}#{len(keys)}").encode())
                given = batch.column("label").to_pylist() if labelled else [None] * len(batch)
                if listed:
                    many += [[int(label) for label in row or ()] for row in given]
                words += [None if word is None or listed else str(word).encode() for word in given]
    if many and (len(many) != len(size) or min(map(min, filter(None, many)), default=0) < 0):
        raise ValueError(f"{files[0]}: `label` must be lists of numbers from 0 up in every file")
    offset = np.cumsum([0, *size])[:-1]
    _save(building, [0] * len(size), offset, size, keys, words, names, many)


def image_column(schema, name: str) -> str:
    """The first column of type struct{bytes, path} of an Arrow schema.

    Raises:
        ValueError: there is none; the message lists the columns.
    """
    import pyarrow as pa

    for field in schema:
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {part.name for part in field.type}:
            return field.name
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ValueError(f"{name}: no image column, of type struct<bytes, path>; its columns are {columns}")


def class_names(schema) -> list[str] | None:
    """Names of the integers in column `label`, from Hugging Face's metadata; None: not said."""
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = info.get("info", {}).get("features", {}).get("label", {})
    feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)  # lists of labels
    return feature.get("names")


def number_words(words: list[bytes | None]) -> tuple[np.ndarray | None, list[str] | None]:
    """Turn label texts into integers: as they are, or else sorted words numbered from 0.

    Returns:
        int64 [n] with -1 for None, or None if all are None; the words, if they were no integers.
    """
    known = {word for word in words if word is not None}
    if not known:
        return None, None
    try:
        number, classes = {word: int(word) for word in known}, None
    except ValueError:
        order = sorted(known)
        number, classes = {word: i for i, word in enumerate(order)}, [readable(word) for word in order]
    return np.array([-1 if word is None else number[word] for word in words], np.int64), classes


def _save(building, shard, offset, size, keys, words, classes=None, many=()) -> None:
    labels, spelled = number_words(words)
    packed = Names.of(keys)
    index = {
        "shard": np.array(shard, np.int64),
        "offset": np.array(offset, np.int64),
        "size": np.array(size, np.int64),
        "keys_blob": packed.blob,
        "keys_ends": packed.ends,
    }
    if labels is not None:
        index["labels"] = labels
    if many:
        index["many"] = np.array([label for row in many for label in row], np.int64)
        index["many_counts"] = np.array([len(row) for row in many], np.int64)
    np.savez(building / "index.npz", allow_pickle=False, **index)
    (building / "classes.json").write_text(json.dumps(spelled or classes))


def _load(folder: Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
    with np.load(folder / "index.npz") as index:
        return dict(index), json.loads((folder / "classes.json").read_text())
