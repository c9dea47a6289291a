"""What images are, whatever they are called: hashes of their bytes."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, UInt64

from .record import BadImage, Source

UNREADABLE = 1
"""stands for an image whose bytes cannot be had; not 0 mod 10, so never held out"""


def fingerprints(source: Source, *, keys: bool = False) -> UInt64[np.ndarray, "n"]:
    """Hash the bytes of each record (BLAKE2b, 64 bits); all of them are read once.

    The same picture has the same number under any name, in any order and in any copy of the data.

    Args:
        source: the records.
        keys: hash their keys, too: then another name is another number.
    Returns:
        one number an image; UNREADABLE where the bytes cannot be had.
    """

    def digest(i: int) -> int:
        try:
            record = source[i]
        except BadImage:
            return UNREADABLE
        data = record.data if isinstance(record.data, bytes) else record.data.tobytes()
        made = hashlib.blake2b(data, digest_size=8)
        if keys:
            made.update(record.key.encode())
        return int.from_bytes(made.digest(), "little")

    def block(start: int) -> list[int]:
        return [digest(i) for i in range(start, min(start + 256, len(source)))]

    with ThreadPoolExecutor() as pool:  # reading and hashing let go of the interpreter
        found = [each for part in pool.map(block, range(0, len(source), 256)) for each in part]
    return np.array(found, np.uint64)


def content_hash(prints: UInt64[np.ndarray, "n"]) -> str:
    """One name for images in their order: 24 hexadecimal digits."""
    return hashlib.blake2b(prints.astype("<u8").tobytes(), digest_size=12).hexdigest()


def seen_in(prints: UInt64[np.ndarray, "n"], others: UInt64[np.ndarray, "m"]) -> Bool[np.ndarray, "n"]:
    """Which images are among the others, byte for byte."""
    return np.isin(prints, others) & (prints != UNREADABLE)
