"""What is computed once from data files and kept: the indices of tar shards, the bytes of parquet."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_FORMAT = "3"
"""changes when what is kept changes its form"""


def cache_root() -> Path:
    """The cache folder: UNMASK_CACHE, else `unmask` in the XDG cache (~/.cache)."""
    if own := os.environ.get("UNMASK_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unmask"


def cached(kind: str, files: list[Path], build: Callable[[Path], None], is_sound: Callable[[Path], bool]) -> Path:
    """Return a folder that `build` filled once for these files in this state.

    One process builds while others wait; the folder appears by a rename, whole or not at all. One that
    was damaged since is built again; who still has its files mapped keeps them.

    Args:
        kind: what is kept, a word.
        files: the files it is made from; their path, size and time of change are the cache's key.
        build: fills the empty folder it is given.
        is_sound: whether a folder is as `build` left it.
    Raises:
        OSError: the cache folder cannot be written; the message says how to choose another.
    """
    stamp = hashlib.blake2b(f"{_FORMAT}\n{kind}".encode(), digest_size=12)
    for file in files:
        status = file.stat()
        stamp.update(f"\n{status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(file.resolve()))
    root = cache_root()
    final = root / f"{kind}-{stamp.hexdigest()}"
    if is_sound(final):
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("w")
    except OSError as error:
        raise OSError(f"cache folder {root}: {error.strerror}; set UNMASK_CACHE to a folder to write in") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_sound(final):
            for stale in root.glob(".building-*"):  # under the lock: whoever built these was killed
                shutil.rmtree(stale, ignore_errors=True)
            if final.is_dir():
                damaged = root / f".building-{final.name}"
                final.rename(damaged)
                shutil.rmtree(damaged)
            building = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
            try:
                build(building)
                building.rename(final)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
    return final
