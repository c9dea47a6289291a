"""The one place where randomness is born: stateless, named, and the same on any machine.

A draw is addressed, not queued. `key(seed, "mask", view, position)` is the generator for one mask
of one sample, whichever rank, worker or day asks for it; so a run is its seed, its step and its
weights, and no generator state is ever saved.
"""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

_MASK64 = (1 << 64) - 1


def fold(seed: int, *place: int | str) -> int:
    """Hash a seed and the name of a draw into 63 bits.

    Source: the idea is JAX's `fold_in`; the hash is BLAKE2b, so that no two names collide by design.

    Args:
        seed: the run's seed.
        place: what the number is for, e.g. `"device", step, rank`.
    Returns:
        an integer in [0, 2**63), fit for `torch.manual_seed`.
    Example:
        >>> fold(0, "device", 3) == fold(0, "device", 3), fold(0, "device", 3) == fold(0, "device", 4)
        (True, False)
    """
    name = "\x1f".join([str(int(seed)), *map(str, place)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def key(seed: int, *place: int | str) -> np.random.Generator:
    """Return the generator for one named draw: the same numbers for the same place, always.

    Args:
        seed: the run's seed.
        place: the address of the draw, e.g. `"view", 0, position`.
    Returns:
        a NumPy generator on the counter-based Philox bit stream (Salmon et al. 2011).
    Example:
        >>> float(key(0, "doc").random()) == float(key(0, "doc").random())
        True
    """
    words: Any = _Key(np.array((fold(seed, *place), 0), np.uint64))  # NumPy's types know no such seeds, its text does
    return np.random.Generator(np.random.Philox(words))


class _Key(ISeedSequence):
    """Philox's key as it is: `Philox(key=...)` draws a seed from the system first, which takes three times as long."""

    def __init__(self, words: np.ndarray):
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self.words


def between(low: float, high: float, rng: np.random.Generator) -> float:
    """Draw a uniform number: rng.uniform(low, high) to the last bit, in a third of its time."""
    return low + (high - low) * rng.random()


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(fold(seed, "shuffle", epoch, r) for r in range(6))


def shuffled_index(i: int, n: int, seed: int, epoch: int) -> int:
    """Return item `i` of the epoch's permutation of range(n), in O(1) memory.

    A six-round Feistel network on the smallest even number of bits that holds n, with cycle
    walking (Black and Rogaway 2002, section 4): a bijection for every n, seed and epoch.
    Four rounds would do for large n; below some twenty records they favor places by a tenth.

    Args:
        i: place in the shuffled order, 0 <= i < n.
        n: size of the data set, n >= 1.
        seed: the run's seed.
        epoch: how many times the data has been seen; each has its own order.
    Returns:
        the index of the record, 0 <= index < n.
    Raises:
        ValueError: `i` lies outside range(n).
    """
    if not 0 <= i < n:
        raise ValueError(f"shuffled_index: place {i} lies outside range({n})")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    keys = _round_keys(seed, epoch)
    while True:  # at most a factor 4 of the domain lies beyond n: under four turns on average
        left, right = i >> half, i & low
        for k in keys:
            mixed = ((right + 1) * 0x9E3779B97F4A7C15 ^ k) & _MASK64
            mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & _MASK64
            left, right = right, left ^ (mixed >> 29 & low)
        i = left << half | right
        if i < n:
            return i
