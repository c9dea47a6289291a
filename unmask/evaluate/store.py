"""Features on disk, found again by the hash of all that they depend on: weights, images, preparation.

One forward pass of a backbone over a data set is the cost of an evaluation; every further protocol,
seed or number of shots reads what is here. Arrays are plain .npy files, read through a memory map and
never as pickles, and each appears whole or not at all.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.cache import cache_root
from .features import Features, Room

LIMIT = 20 << 30
"""bytes of features that are kept; the least recently used make room"""
_FORMAT = "1"
"""changes when features of the same name change their meaning"""


class Store:
    """Features by content.

    Args:
        root: the folder; None: a temporary one, gone with `close` (`--no-cache`).
        limit: bytes that stay in it.
    """

    def __init__(self, root: Path | None, limit: int = LIMIT):
        self.temporary = None if root else tempfile.TemporaryDirectory(prefix="unmask-features-")
        self.root = root or Path(self.temporary.name)  # pyright: ignore[reportOptionalMemberAccess]
        self.limit = limit

    @classmethod
    def cache(cls) -> "Store":
        """The store in the cache folder (UNMASK_CACHE)."""
        return cls(cache_root() / "features")

    def close(self) -> None:
        """Remove a temporary store."""
        if self.temporary is not None:
            self.temporary.cleanup()

    def take(self, stamp: str, names: Sequence[str], make: Callable[[list[str], Room], Features]) -> Features:
        """Return the named features of one model and one set; what is missing is made, in one pass.

        Args:
            stamp: the hash of what they depend on: `stamp_of`.
            names: keys of `Features.values`.
            make: extracts these names into arrays from `room`.
        Raises:
            OSError: no room on the disk; says what is needed.
            ValueError: a file is damaged.
        """
        folder = self.root / stamp
        missing = [name for name in names if not _file(folder, name).exists()]
        if missing or not (folder / "images.json").exists():
            self._make(folder, missing, make)
        os.utime(folder)  # used now: last to make room
        try:
            about = json.loads((folder / "images.json").read_text())
            rows, labels = (np.array(about[part], np.int64) for part in ("rows", "labels"))
            values = {name: np.load(_file(folder, name), mmap_mode="r")[: len(rows)] for name in names}
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"features in {folder} are damaged ({error}); remove that folder") from error
        return Features(values, labels, about["keys"], rows, about["skipped"])

    def _make(self, folder: Path, names: list[str], make: Callable[[list[str], Room], Features]) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=".building-", dir=self.root))
        except OSError as error:
            cure = "set UNMASK_CACHE to a folder to write in, or give --no-cache"
            raise OSError(f"feature cache {self.root}: {error.strerror}; {cure}") from error

        def room(name: str, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
            size, free = int(np.prod(shape)) * kind.itemsize, shutil.disk_usage(building).free
            if size > min(free, self.limit):
                raise OSError(
                    f"{name} features need {size / 2**30:.1f} GiB in {self.root}, which has {free / 2**30:.1f} free "
                    f"and a limit of {self.limit / 2**30:.0f}; evaluate on fewer images, or set UNMASK_CACHE"
                )
            return np.lib.format.open_memmap(_file(building, name), mode="w+", dtype=kind, shape=shape)

        try:
            made = make(names, room)
            about = {"keys": made.keys, "rows": made.rows.tolist(), "labels": made.labels.tolist()}
            (building / "images.json").write_text(json.dumps(about | {"skipped": made.skipped}))
            folder.mkdir(exist_ok=True)
            for file in sorted(building.iterdir()):  # each by a rename: whole or not at all
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        self._make_room(folder)

    def _make_room(self, latest: Path) -> None:
        """Remove the least recently used sets above the limit, and what a killed process left."""
        day = time.time() - 86400
        for stale in self.root.glob(".building-*"):
            if stale.stat().st_mtime < day:
                shutil.rmtree(stale, ignore_errors=True)
        folders = [folder for folder in self.root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
        sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime):
            if sum(sizes.values()) > self.limit and folder != latest:
                shutil.rmtree(folder, ignore_errors=True)
                del sizes[folder]


def stamp_of(weights: str, data: str, **preparation: Any) -> str:
    """Name what features depend on: weights, images, and how these are prepared."""
    text = json.dumps([_FORMAT, weights, data, preparation], sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_hash(module: nn.Module | None) -> str:
    """Hash a network: its parameters and buffers by name, and its configuration where it has one."""
    digest = hashlib.blake2b(repr(getattr(module, "config", None)).encode(), digest_size=16)
    for name, tensor in sorted(module.state_dict().items()) if module is not None else ():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '.')}.npy"
