"""DATA as it is written on the command line, and what is asked of any source: what is held out, its mean."""

import contextlib
import glob
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Int64

from ..nearest import beside, nearest
from ..randomness import key, shuffled_index
from .decode import decode
from .demo import Demo
from .fingerprint import fingerprints
from .folder import Folder
from .hub import Hub
from .record import IMAGE_SUFFIXES, BadImage, Record, Source, Subset
from .shards import open_parquet, open_tar

__all__ = [
    "BadImage",
    "Record",
    "Source",
    "Subset",
    "holdout_places",
    "holdout_split",
    "holdout_way",
    "measure_mean_std",
    "open_source",
    "same_place",
]

READ_IMAGES, READ_BYTES = 100_000, 16 << 30
"""of a source that is read whole to choose held-out images by content: seconds to a minute or two of a disk"""
MOST_HELD = 10_000
"""images at most that are held out by place"""
LOOKED = 64
"""images whose size tells how large a source is"""

Way = Literal["content", "place"]

_GRAMMAR = (
    "give a folder of images, a .tar shard or a .parquet file (or a quoted glob of them), "
    "hf:NAME[:SPLIT], hf:FOLDER, demo:train or demo:test"
)


def open_source(spec: str, labels: Literal["auto", "folder", "none"] = "auto") -> Source:
    """Open DATA.

    Args:
        spec: a folder of images; a tar shard, a parquet file or image files (one, or a glob of one
            kind); `hf:NAME[:SPLIT]` or `hf:FOLDER`; `demo`, `demo:train`, `demo:test`.
        labels: "auto" uses what the source has, "folder" insists on labels (for a folder: the first
            sub-folder is the class), "none" ignores them.
    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is empty, of no known kind, or has no labels though they were insisted on.
    """
    source = _open(spec, labels)
    if labels == "none":
        source.labels = source.classes = None
    elif labels == "folder" and source.labels is None:
        raise ValueError(f"{spec}: has no labels; leave --labels folder out")
    return source


def _open(spec: str, labels: Literal["auto", "folder", "none"]) -> Source:
    if not spec:
        raise ValueError(f"no DATA: {_GRAMMAR}")
    if spec in ("demo", "demo:train", "demo:test"):
        return Demo("test" if spec == "demo:test" else "train")
    if spec.startswith("hf:"):
        return Hub(spec.removeprefix("hf:"))
    path = Path(spec).expanduser()
    if path.is_dir():
        return Folder(str(path), labels=labels)
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not files:
        near = beside(path) or nearest(spec, ("demo:train", "demo:test"))
        hint = f"did you mean {near}?" if near else _GRAMMAR
        raise FileNotFoundError(f"{spec}: no such file or folder; {hint}")
    suffixes = {file.suffix.lower().lstrip(".") for file in files}
    if suffixes == {"tar"}:
        return open_tar(spec, files)
    if suffixes == {"parquet"}:
        return open_parquet(spec, files)
    if suffixes <= IMAGE_SUFFIXES:
        return Folder(spec, files=[str(file) for file in files])
    if suffixes & {"gz", "tgz", "bz2", "xz", "zst"}:
        raise ValueError(f"{spec}: compressed; unpack it first, members are read at any place")
    raise ValueError(f"{spec}: {', '.join(sorted(suffixes))} is no kind of data known here; {_GRAMMAR}")


def same_place(a: str, b: str) -> bool:
    """Whether two DATA are one: `photos` and `photos/`, relative and absolute."""
    return a == b or (Path(a).exists() and Path(b).exists() and Path(a).samefile(b))


def holdout_way(source: Source) -> Way:
    """How to choose held-out images: by content while all bytes can be read at a start, else by place.

    Args:
        source: all images, before few are drawn of them, so that runs on few and on all of them choose alike.
    """
    if len(source) > READ_IMAGES:
        return "place"
    sizes = []
    for i in range(min(LOOKED, len(source))):
        with contextlib.suppress(BadImage):
            data = source[shuffled_index(i, len(source), 0, 0)].data
            sizes.append(len(data) if isinstance(data, bytes) else data.nbytes)
    return "content" if not sizes or np.mean(sizes) * len(source) <= READ_BYTES else "place"


def holdout_places(source: Source, way: Way = "content") -> Int64[np.ndarray, "m"]:
    """Choose the images that are held out.

    Args:
        source: the images.
        way: content: a tenth, whose bytes hash to 0 mod 10 (BLAKE2b); all bytes are read once. The same picture
            falls on the same side under any name, in any order and in any copy of the data. place: a tenth, but
            MOST_HELD at most, by a draw of places in the source; nothing is read. Who trains on a `Subset` trains
            on none that are held out of all images.
    Returns:
        their places, in rising order.
    """
    if way == "content":
        return np.flatnonzero(fingerprints(source) % 10 == 0)
    n = len(source.source) if isinstance(source, Subset) else len(source)
    rank = key(0, "holdout").permutation(n)
    rank = rank[source.index] if isinstance(source, Subset) else rank
    tenth = np.flatnonzero(rank < n // 10)
    return np.sort(tenth[np.argsort(rank[tenth])[:MOST_HELD]])


def holdout_split(
    source: Source, held: Int[np.ndarray, "m"] | None = None, way: Way = "content"
) -> tuple[Subset, Subset]:
    """Split a source into images to train on and images that are held out.

    Args:
        source: the images.
        held: places of the held-out ones, of an earlier split; None: `holdout_places` chooses.
        way: for `holdout_places`.
    Returns:
        (training part, held-out part), in the source's order.
    Raises:
        ValueError: one of them is empty.
    """
    mask = np.zeros(len(source), dtype=bool)
    mask[holdout_places(source, way) if held is None else held] = True
    train, out = Subset(source, np.flatnonzero(~mask)), Subset(source, np.flatnonzero(mask))
    if not len(train) or not len(out):
        raise ValueError(f"{source.name}: {len(source)} images, of which {len(out)} fall to the test; give --test DATA")
    return train, out


def measure_mean_std(
    source: Source,
    *,
    seed: int,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    n: int = 2000,
    size: int = 256,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure the mean and standard deviation of pixels in [0, 1], each image counting the same.

    Args:
        source: the training images.
        seed: chooses the images: the first `n` of the shuffled order of epoch 0.
        channels: as for `decode`.
        value_range: as for `decode`.
        n: images looked at, or all if there are fewer; unreadable ones are passed over.
        size: of larger images only every k-th pixel counts, so that this many are left along a side.
    Returns:
        mean and std, one value a channel; a channel that is constant has std 1/255.
    Raises:
        ValueError: no image could be read; the message has the first reason.
    """
    sums: list[np.ndarray] = []
    reason = ""
    for i in range(min(n, len(source))):
        try:
            image = decode(source[shuffled_index(i, len(source), seed, 0)], channels=channels, value_range=value_range)
        except BadImage as error:
            reason = reason or str(error)
            continue
        every = max(1, min(image.shape[1:]) // size)
        pixels = image[:, ::every, ::every].flatten(1).double() / 255  # [C P]
        sums.append(np.stack([pixels.mean(1).numpy(), pixels.square().mean(1).numpy()]))
    if not sums:
        raise ValueError(f"{source.name}: none of {min(n, len(source))} images can be read; the first: {reason}")
    mean, square = np.mean(sums, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 255.0**-2))
    return tuple(map(float, mean)), tuple(map(float, std))
