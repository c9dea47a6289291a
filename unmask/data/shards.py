"""Records at byte ranges of a few large files: tar shards as they are, parquet through a copy.

A tar shard (WebDataset naming: `key.jpg`, `key.cls`) is indexed once and then read by `pread`, so any
member costs the same. Parquet packs rows by the megabyte, so its image bytes are copied once, end to
end, into one file of the cache. Both are then the same source.
"""

import json
import multiprocessing
import os
import shutil
import tarfile
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .cache import cache_root, cached
from .index import Index, Part, Writer, is_sound
from .record import IMAGE_SUFFIXES, LabelRows, Record, label_of, read_range, readable

SHARDS_A_PROCESS = 8
"""tar shards from which one more process reads headers: 20 to 40 microseconds a member in each"""
AHEAD = 4
"""tar shards a process whose headers may be read before the first of them is asked for"""


class Shards:
    """Images at byte ranges of files, described by an index.

    Args:
        name: the DATA that was asked for.
        files: the files, by number.
        index: see Index.
        classes: names of the labels, where they have names.
    """

    def __init__(self, name: str, files: list[Path], index: Index, classes: list[str] | None):
        self.name, self.files, self.classes = name, [str(file) for file in files], classes
        self.index, self.labels = index, index.labels
        self.label_rows: LabelRows | None = None
        """where images have lists of labels"""
        if index.many is not None:  # there may be names of more classes than occur
            most = max(index.many.classes, len(classes or []))
            self.label_rows = LabelRows(index.many.labels, index.many.ends, most)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Record:
        key, row = readable(self.index.key(i)), self.index.records[i]
        data = read_range(self.files[row["shard"]], int(row["offset"]), int(row["size"]), key)
        return Record(data, label_of(self.labels, i), key)


def open_tar(name: str, files: list[Path]) -> Shards:
    """Open tar shards; the index is built at the first opening and kept in the cache.

    Labels are the integers, the words or the lists of integers (`[0, 2]`: several labels) in `key.cls`; for
    integers, a `classes.json` beside the shards (a list) may give names. Directories, links, hidden files
    and members that are neither image nor .cls are passed over: nothing is ever unpacked, so no member's
    name can do harm.

    Raises:
        ValueError: a shard is compressed, damaged or cut short, or there is no image in any.
    """
    index = Index(cached("tar", files, lambda building: _index_tars(files, building), is_sound))
    if not len(index):
        wanted = ", ".join(f"key.{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{name}: no images in {len(files)} tar shards; looked for members {wanted}")
    beside, classes = files[0].parent / "classes.json", index.classes
    if classes is None and (index.labels is not None or index.many is not None) and beside.is_file():
        classes = [str(word) for word in json.loads(beside.read_text())]
        if index.most >= len(classes):
            raise ValueError(f"{beside}: {len(classes)} names for labels up to {index.most}")
    return Shards(name, files, index, classes)


def _index_tars(files: list[Path], building: Path) -> None:
    lists = plain = 0  # texts of either kind
    with Writer(building) as writer:
        for number, part in enumerate(_read_tars(files)):
            listed, rows = sum(word.startswith(b"[") for word in part.words), None
            lists, plain = lists + listed, plain + len(part.words) - listed
            if lists and plain:
                raise ValueError(f"{files[number]}: some key.cls are lists and others are not; give all the same kind")
            if lists:
                rows = LabelRows.of([*(_numbers(word, files[number]) for word in part.words), []])[part.word]
                part = part._replace(words=[], word=np.full(len(part.word), -1))
            writer.add(number, part, rows)
        writer.finish()


def _numbers(text: bytes, file: Path) -> list[int]:
    """Read a list of labels, such as `[0, 2]`."""
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, list) or not all(type(label) is int and 0 <= label < 1 << 31 for label in row):
        raise ValueError(f"{file}: key.cls says {readable(text)[:60]}; give a list of numbers from 0 up, as in [0, 2]")
    return row


def _read_tars(files: list[Path]) -> Iterator[Part]:
    """Read the headers of all shards, in order; of many shards by several processes, a few shards ahead."""
    processes = min(os.cpu_count() or 1, len(files) // SHARDS_A_PROCESS)
    if processes < 2:
        yield from map(_read_headers, files)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork of a threaded process: no thread's lock is used
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
            ahead: deque[Future[Part]] = deque()  # bounded: parts that wait behind a slow shard are held here
            try:
                for file in files:
                    ahead.append(pool.submit(_read_headers, file))
                    if len(ahead) == AHEAD * processes:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:  # a damaged shard ends it now, not after those ahead
                for future in ahead:
                    future.cancel()


def _read_headers(path: Path) -> Part:
    """Read a shard's headers: where each image lies, and the text of its .cls."""
    offset: list[int] = []
    size: list[int] = []
    keys: list[bytes] = []
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
                    offset.append(member.offset_data)
                    size.append(member.size)
                    keys.append(key)
                elif suffix == "cls" and member.size < 4096:
                    classes[key] = os.pread(raw.fileno(), member.size, member.offset_data).strip()
            # tarfile takes a damaged or missing header for the end: only a block of zeros is one
            if os.pread(raw.fileno(), 512, tar.offset) != bytes(512):
                raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset} of {whole}")
    except tarfile.TarError as error:
        if _starts_with(path, b"\x1f\x8b"):
            raise ValueError(f"{path}: compressed; unpack it with gunzip, to read members at any place") from error
        raise ValueError(f"{path}: damaged or cut short ({error}); copy the shard again") from error
    return Part.of(offset, size, keys, [classes.get(key) for key in keys])


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
    folder = cached("parquet", files, lambda building: _copy_parquets(files, building), is_sound)
    index = Index(folder)
    if not len(index):
        raise ValueError(f"{name}: no rows in {len(files)} parquet files")
    return Shards(name, [folder / "images.bin"], index, index.classes)


def _copy_parquets(files: list[Path], building: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place, names, lists, sound = 0, None, 0, True
    _check_room(files, building)
    with Writer(building) as writer, (building / "images.bin").open("wb") as out:
        for path in files:
            # as it is by default, pyarrow would hold all of the file, or of a row group, until it is read to the end
            table = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
            image = image_column(table.schema_arrow, str(path))
            names = names or class_names(table.schema_arrow)
            labelled = "label" in table.schema_arrow.names
            listed = labelled and pa.types.is_list(table.schema_arrow.field("label").type)
            for batch in table.iter_batches(256, columns=[image, *(["label"] if labelled else [])]):
                offset: list[int] = []
                size: list[int] = []
                keys: list[bytes] = []
                column = batch.column(image)
                parts = dict(zip((f.name for f in column.type), column.flatten(), strict=True))
                for data, below in zip(parts["bytes"], parts["path"], strict=True):
                    data, below = data.as_buffer(), below.as_py()
                    if data is None and below and (path.parent / below).is_file():
                        data = (path.parent / below).read_bytes()
                    offset.append(place)
                    size.append(out.write(data or b""))
                    place += size[-1]
                    keys.append((below or f"{path.name}#{writer.count + len(keys)}").encode())
                labels, rows = batch.column("label").to_pylist() if labelled else [None] * len(batch), None
                if listed:
                    rows = LabelRows.of([list(map(int, row or ())) for row in labels])
                    sound = sound and rows.labels.min(initial=0) >= 0 and rows.classes <= 1 << 31
                    labels, lists = [None] * len(batch), lists + len(batch)
                words = [None if word is None else str(word).encode() for word in labels]
                writer.add(0, Part.of(offset, size, keys, words), rows)
        out.flush()
        if lists and (lists != writer.count or not sound):
            raise ValueError(f"{files[0]}: `label` must be lists of numbers from 0 up in every file")
        writer.finish(names)


def _check_room(files: list[Path], building: Path) -> None:
    """Refuse, before the first byte is copied, files that are not whole and files that do not fit together."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = 0
    for path in files:
        try:
            about = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a whole parquet file ({error}); copy it again") from error
        wanted += sum(about.row_group(g).total_byte_size for g in range(about.num_row_groups))
    if wanted > shutil.disk_usage(building).free:
        named = f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else f"{files[0]}"
        raise ValueError(f"{named}: need {wanted >> 20} MiB in {cache_root()}; free some, or set UNMASK_CACHE")


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
