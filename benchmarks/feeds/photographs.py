"""Photographs to read: JPEGs made from those in scikit-image's wheel, or one's own, as folder, tar and parquet."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from unmask.data.demo import PHOTOGRAPHS, photograph

KINDS = {"small": (500, 375), "large": (1024, 768)}
"""width and height, in pixels"""
QUALITY = 90


class Photos(NamedTuple):
    """The same files three times; what `unmask pretrain` takes as DATA."""

    folder: str
    tar: str
    parquet: str
    about: str
    """how many, how large"""


def make(kind: str, count: int) -> list[bytes]:
    """Crop photographs at random places and resize the crops to the size of a kind.

    Resizing never enlarges by more than two: the grain, and so the bytes a pixel, stay a photograph's.
    """
    rng = np.random.default_rng(0)
    photos = [photograph(name) for name in PHOTOGRAPHS]
    colored = [photo for photo in photos if np.ptp(np.asarray(photo), axis=2).mean() > 4]
    made = []
    for i in range(count):
        photo = colored[i % len(colored)]
        width, height = KINDS[kind]
        least = max(0.5, min(1.0, width / photo.width, height / photo.height))
        share = min(rng.uniform(least, 2.0), photo.width / width, photo.height / height)
        w, h = int(width * share), int(height * share)
        left, top = int(rng.integers(0, photo.width - w + 1)), int(rng.integers(0, photo.height - h + 1))
        crop = photo.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)
        made.append(_encode(crop))
    return made


def crops(side: int, count: int) -> dict[str, list[bytes]]:
    """Small squares of photographs, by photograph: a task with labels."""
    rng = np.random.default_rng(1)
    found = {}
    for name in PHOTOGRAPHS:
        photo = photograph(name)
        windows = []
        for _ in range(count):
            extent = int(rng.integers(side, 2 * side + 1))
            left, top = (int(rng.integers(0, length - extent + 1)) for length in photo.size)
            window = photo.crop((left, top, left + extent, top + extent))
            windows.append(_encode(window.resize((side, side), Image.Resampling.BICUBIC)))
        found[name] = windows
    return found


def _encode(image: Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, "JPEG", quality=QUALITY)
    return held.getvalue()


def own(folder: Path, most: int = 500) -> list[bytes]:
    """The bytes of a folder's JPEGs, the first `most` by name.

    Raises:
        FileNotFoundError: there is none.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg"})[:most]
    if not files:
        raise FileNotFoundError(f"{folder}: no .jpg or .jpeg in it; give another --data")
    return [file.read_bytes() for file in files]


def write(photos: Sequence[bytes], where: Path) -> Photos:
    """Write them as a folder, a tar in WebDataset's naming and a parquet in Hugging Face's layout."""
    folder, tar, parquet = where / "folder", where / "photos.tar", where / "photos.parquet"
    folder.mkdir(parents=True)
    with tarfile.open(tar, "w") as shard:
        for i, data in enumerate(photos):
            (folder / f"{i:06d}.jpg").write_bytes(data)
            entry = tarfile.TarInfo(f"{i:06d}.jpg")
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))
    images = pa.array(
        [{"bytes": data, "path": f"{i:06d}.jpg"} for i, data in enumerate(photos)],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    pq.write_table(pa.table({"image": images}), parquet)
    sizes = np.array([Image.open(io.BytesIO(data)).size for data in photos])
    width, height = sizes.mean(0).round().astype(int)
    kilobytes = np.mean([len(data) for data in photos]) / 1000
    about = f"{len(photos)} JPEGs, {width} x {height} and {kilobytes:.0f} kB on average"
    return Photos(str(folder), str(tar), str(parquet), about)


def write_classes(photos: dict[str, list[bytes]], where: Path) -> str:
    """Write them as a folder for each class; returns DATA."""
    for name, files in photos.items():
        (where / name).mkdir(parents=True)
        for i, data in enumerate(files):
            (where / name / f"{i:04d}.jpg").write_bytes(data)
    return str(where)
