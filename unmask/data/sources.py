"""DATA as it is written on the command line, and what is asked of any source: its tenth, its mean."""

import glob
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from ..nearest import beside, nearest
from ..randomness import shuffled_index
from .decode import decode
from .demo import Demo
from .fingerprint import fingerprints
from .folder import Folder
from .hub import Hub
from .record import IMAGE_SUFFIXES, BadImage, Record, Source, Subset
from .shards import open_parquet, open_tar

__all__ = ["BadImage", "Record", "Source", "Subset", "holdout_split", "measure_mean_std", "open_source", "same_place"]

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


def holdout_split(source: Source, known: Int[np.ndarray, "m"] | None = None) -> tuple[Subset, Subset]:
    """Split a source by content: a tenth, whose bytes hash to 0 mod 10 (BLAKE2b), is held out.

    The same picture falls on the same side under any name, in any order and in any copy of the data.

    Args:
        source: the images; all their bytes are read once.
        known: the held-out places of an earlier split of this source, to spare the reading.
    Returns:
        (training part, held-out part), in the source's order.
    Raises:
        ValueError: one of them is empty.
    """
    if known is None:
        mask = fingerprints(source) % 10 == 0
    else:
        mask = np.zeros(len(source), dtype=bool)
        mask[known] = True
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
