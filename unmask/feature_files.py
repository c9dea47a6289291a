"""Files of features: parts while they are computed, then one parquet or npz file, written a part at a time.

    key      str            the source's name of the image
    label    int64          class, -1 unknown
    cls      float32 [D]
    mean     float32 [D]
    patches  float32 [N D]  on request

A parquet file says in its schema, an npz file in its zip comment, what it was made from (`unmask.embed`).
"""

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

ABOUT = b"unmask.embed"
COLUMNS = ("key", "label", "cls", "mean", "patches")


class Rows:
    """The features of consecutive records, gathered batch by batch."""

    def __init__(self, width: int, patches: int | None):
        """Take nothing yet: D features, and of N patches or of none."""
        self.shapes: dict[str, tuple[int, ...]] = {"cls": (width,), "mean": (width,)}
        if patches is not None:
            self.shapes["patches"] = (patches, width)
        self.keys: list[str] = []
        self.labels: list[int] = []
        self.values: dict[str, list[np.ndarray]] = {name: [] for name in self.shapes}
        self.bad: list[str] = []

    def add(self, keys: Sequence[str], labels: Sequence[int], values: Mapping[str, Float[np.ndarray, "B ..."]]) -> None:
        """Append a batch."""
        self.keys += keys
        self.labels += labels
        for name, value in values.items():
            self.values[name].append(value)

    def table(self) -> pa.Table:
        columns: dict[str, pa.Array] = {
            "key": pa.array(self.keys, pa.string()),
            "label": pa.array(self.labels, pa.int64()),
        }
        for name, shape in self.shapes.items():
            flat = np.concatenate([*self.values[name], np.empty((0, *shape), np.float32)]).reshape(-1)
            array = pa.array(flat, pa.float32())
            for size in reversed(shape):
                array = pa.FixedSizeListArray.from_arrays(array, size)
            columns[name] = array
        return pa.table(columns).replace_schema_metadata({ABOUT: json.dumps({"bad": self.bad})})


def write_part(rows: Rows, file: Path) -> None:
    """Write a part, whole or not at all."""
    with whole(file) as partial:
        pq.write_table(rows.table(), partial)


def read_about(file: Path) -> dict[str, Any] | None:
    """What a file was made from; None: it was not made here, or is damaged."""
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                text = archive.comment
        else:
            text = (pq.read_schema(file).metadata or {}).get(ABOUT, b"")
        about = json.loads(text)
    except (zipfile.BadZipFile, pa.ArrowInvalid, ValueError):
        return None
    return about if isinstance(about, dict) else None


def join(parts: Sequence[Path], out: Path, about: dict[str, Any]) -> None:
    """Put parts one after the other into FILE.parquet or FILE.npz, in the memory of one part."""
    (_join_npz if out.suffix == ".npz" else _join_parquet)(parts, out, json.dumps(about).encode())


def _join_parquet(parts: Sequence[Path], out: Path, about: bytes) -> None:
    schema = pq.read_schema(parts[0]).with_metadata({ABOUT: about})
    with whole(out) as partial, pq.ParquetWriter(partial, schema) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).replace_schema_metadata(schema.metadata))


def _join_npz(parts: Sequence[Path], out: Path, about: bytes) -> None:
    """An npz is a zip of arrays, each with its shape in front: known, since all parts are there."""
    names = [name for name in COLUMNS if name in pq.read_schema(parts[0]).names]
    n = sum(pq.read_metadata(part).num_rows for part in parts)
    longest = max(
        (len(key) for part in parts for key in pq.read_table(part, columns=["key"])["key"].to_pylist()), default=1
    )
    with whole(out) as partial, zipfile.ZipFile(partial, "w", allowZip64=True) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                for i, part in enumerate(parts):
                    array = _array(pq.read_table(part, columns=[name])[name], longest)
                    if i == 0:
                        shape = {"descr": array.dtype.str, "fortran_order": False, "shape": (n, *array.shape[1:])}
                        np.lib.format.write_array_header_2_0(file, shape)
                    file.write(np.ascontiguousarray(array).tobytes())
        archive.comment = about


def _array(column: pa.ChunkedArray, longest: int) -> np.ndarray:
    """A column of a part as one array: strings of a common length, lists as further axes."""
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=f"<U{longest}")
    shape, kind, flat = [len(column)], column.type, column.combine_chunks()
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind, flat = kind.value_type, flat.flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(shape)


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A name beside a file, which takes its place when all went well, and is gone otherwise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.tmp")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
