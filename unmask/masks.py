"""Which patches are hidden: policies (grid, generator) -> bool grid, and the indices that follow from it.

True = hidden, everywhere in this project. Policies run on the CPU in the loader's workers, one
generator for each mask; what the device needs (the order of the visible patches) never asks it to wait.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Ratios = tuple[tuple[float, float], ...]
"""(mean, spread) pairs: one is taken, all equally likely, and gives U(mean - spread, mean + spread)"""


@dataclass(frozen=True)
class MaskPolicy:
    """How one mask is drawn; subclasses are frozen dataclasses, so that every number is a config field."""

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "gh gw"]:
        """Draw one mask for a grid of (gh, gw) patches; True = hidden."""
        raise TypeError(f"{type(self).__name__} draws no mask: define __call__(grid, rng) -> bool [gh gw]")


@dataclass(frozen=True)
class RandomMask(MaskPolicy):
    """Hide the same number of patches in every image, uniformly (MAE, He et al. 2021, section 3)."""

    ratio: float = 0.75
    """fraction of the patches hidden, in [0, 1); MAE 0.75"""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"RandomMask: ratio {self.ratio} lies outside [0, 1); MAE uses 0.75")

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "gh gw"]:
        patches = grid[0] * grid[1]
        return _scatter(grid, patches - keep_count(patches, self.ratio), rng)


@dataclass(frozen=True)
class ScatterMask(MaskPolicy):
    """Hide a drawn fraction of the patches, uniformly (iBOT's `--pred_shape rand`)."""

    ratios: Ratios = ((0.0, 0.0), (0.3, 0.2))
    """(mean, spread) of the fraction hidden; iBOT's recipe leaves half of the crops whole"""

    def __post_init__(self) -> None:
        _check_ratios(self.ratios, "ScatterMask")

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "gh gw"]:
        return _scatter(grid, int(_draw_ratio(self.ratios, rng) * grid[0] * grid[1]), rng)


@dataclass(frozen=True)
class BlockMask(MaskPolicy):
    """Hide a union of random rectangles (BEiT, Bao et al. 2021, Algorithm 1; iBOT, Zhou et al. 2021).

    The defaults are BEiT's, 75 of 14 x 14 patches, and keep its fraction on other grids. iBOT is
    `BlockMask(ratios=((0.0, 0.0), (0.3, 0.2)), smallest=None)`.
    """

    ratios: Ratios = ((75 / 196, 0.0),)
    """(mean, spread) of the fraction hidden, at most; BEiT 75 of 196, iBOT (0, 0) or (0.3, 0.2)"""
    count: int | None = None
    """patches hidden, at most, instead of `ratios`"""
    smallest: int | None = 16
    """area of the smallest rectangle, in patches; BEiT 16 at 14 x 14. None: iBOT's rule, the square of a
    third of the shorter side, (min(gh, gw) // 3) ** 2: 16 at 14 x 14, 4 at 8 x 8 (self-sizing recipes)"""
    largest: int | None = None
    """area that one rectangle may add, in patches; None: all that is still to hide"""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """height / width of a rectangle, log-uniform between these"""

    def __post_init__(self) -> None:
        _check_ratios(self.ratios, "BlockMask")

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "gh gw"]:
        count = self.count if self.count is not None else _draw_ratio(self.ratios, rng) * grid[0] * grid[1]
        smallest = self.smallest if self.smallest is not None else (min(grid) // 3) ** 2
        return block_mask(grid, count, aspect=self.aspect, smallest=smallest, largest=self.largest, rng=rng)


def block_mask(
    grid: tuple[int, int],
    count: int | float,
    *,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    smallest: int = 16,
    largest: int | None = None,
    rng: np.random.Generator,
) -> Bool[np.ndarray, "gh gw"]:
    """Hide up to `count` patches as a union of random rectangles.

    BEiT, Bao et al. 2021, Algorithm 1 (arXiv:2106.08254), as its `masking_generator.py` has it, and
    iBOT's loader, where `count` is a real number: ratio * gh * gw. No rectangle spans a side of the
    grid, and one that would hide too much is drawn again.
    Differs from the original: NumPy's Philox draws, not Python's Mersenne Twister. Fed the original's
    draws, in its order, the masks are its masks, bit by bit (tests/test_masks.py).

    Args:
        grid: (gh, gw), in patches.
        count: patches to hide, 0 <= count <= gh * gw. BEiT uses 75 of 196.
        aspect: least and greatest height / width, drawn log-uniformly.
        smallest: area of the smallest rectangle, in patches. When fewer are left to hide the range of
            areas runs backwards, up to `smallest`, as in the original.
        largest: patches that one rectangle may add; None: all that are left.
        rng: the generator of this mask.
    Returns:
        bool [gh gw], True = hidden; often fewer than `count`: ten rejected rectangles end the mask.
    Raises:
        ValueError: `count` exceeds the grid.
    Example:
        >>> from unmask.randomness import key
        >>> bool(0 < block_mask((14, 14), 75, rng=key(0, "doc")).sum() <= 75)
        True
    """
    if not 0 <= count <= grid[0] * grid[1]:
        raise ValueError(f"block_mask: {count} patches to hide of a {grid[0]}x{grid[1]} grid; give fewer")
    mask, hidden = np.zeros(grid, dtype=bool), 0
    while hidden < count:
        room = count - hidden if largest is None else min(count - hidden, largest)
        new = _hide_block(mask, room, smallest, (math.log(aspect[0]), math.log(aspect[1])), rng)
        if new == 0:
            break
        hidden += new
    return mask


def _hide_block(
    mask: Bool[np.ndarray, "gh gw"],
    room: int | float,
    smallest: int,
    log_aspect: tuple[float, float],
    rng: np.random.Generator,
) -> int:
    """Hide one more rectangle in `mask`; return how many patches it added, 0 after ten vain tries."""
    gh, gw = mask.shape
    for _ in range(10):
        area = _uniform(smallest, room, rng)
        ratio = math.exp(_uniform(*log_aspect, rng))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < gh and w < gw:
            top, left = int(rng.integers(gh - h + 1)), int(rng.integers(gw - w + 1))
            block = mask[top : top + h, left : left + w]
            new = h * w - int(np.count_nonzero(block))
            if 0 < new <= room:
                block[:] = True
                return new
    return 0


def keep_count(patches: int, ratio: float) -> int:
    """Count the patches that MAE's encoder sees: int(patches * (1 - ratio)), in floating point.

    Args:
        patches: N, the patches of an image.
        ratio: fraction hidden, in [0, 1).
    Returns:
        visible patches of every image; the rounding is the original's, 9 of 100 at 0.9.
    Example:
        >>> keep_count(196, 0.75), keep_count(100, 0.9)
        (49, 9)
    """
    return int(patches * (1 - ratio))


class Shuffle(NamedTuple):
    """MAE's random masking, in the order of the original: see `shuffle`."""

    ids_shuffle: Int[Tensor, "B N"]
    """patch at each place of the shuffled order"""
    ids_keep: Int[Tensor, "B n"]
    """its first `keep` places: the patches that the encoder sees"""
    ids_restore: Int[Tensor, "B N"]
    """place of each patch in the shuffled order"""
    mask: Bool[Tensor, "B N"]
    """True = hidden, in raster order"""


def shuffle(noise: Float[Tensor, "B N"], keep: int) -> Shuffle:
    """Turn noise into a mask: each image keeps the patches with its `keep` smallest numbers.

    MAE's `random_masking` (He et al. 2021, section 3, "simple implementation"). Differs from the
    original: the sort is stable, so ties have one answer.

    Args:
        noise: [B N] uniform numbers.
        keep: visible patches of an image, see `keep_count`.
    Returns:
        the indices both ways, and the mask.
    """
    ids_shuffle = noise.argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1, stable=True)
    return Shuffle(ids_shuffle, ids_shuffle[:, :keep], ids_restore, ids_restore >= keep)


def visible_indices(mask: Bool[Tensor, "B N"], count: int) -> Int[Tensor, "B n"]:
    """List the visible patches of each image in raster order, without asking the device to wait.

    Args:
        mask: [B N], True = hidden, with `count` visible patches in every row (`keep_count`); where a
            row has fewer, its first hidden ones follow, for to count them would be to wait.
        count: n, visible patches of an image.
    Returns:
        [B n] indices into N, ascending.
    Example:
        >>> visible_indices(torch.tensor([[True, False, True, False]]), 2).tolist()
        [[1, 3]]
    """
    return mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def _scatter(grid: tuple[int, int], hidden: int, rng: np.random.Generator) -> Bool[np.ndarray, "gh gw"]:
    patches = grid[0] * grid[1]
    mask = np.arange(patches) >= patches - hidden
    rng.shuffle(mask)
    return mask.reshape(grid)


def _draw_ratio(ratios: Ratios, rng: np.random.Generator) -> float:
    drawn = [_uniform(mean - spread, mean + spread, rng) if spread > 0 else mean for mean, spread in ratios]
    return drawn[int(rng.integers(len(drawn)))] if len(drawn) > 1 else drawn[0]


def _uniform(low: int | float, high: int | float, rng: np.random.Generator) -> float:
    return low + (high - low) * rng.random()  # NumPy's own `uniform` refuses a range that runs backwards


def _check_ratios(ratios: Ratios, who: str) -> None:
    if not ratios:
        raise ValueError(f"{who}: no ratio given; iBOT's are ((0.0, 0.0), (0.3, 0.2))")
    for mean, spread in ratios:
        if not 0 <= spread <= mean <= mean + spread <= 1:
            raise ValueError(f"{who}: ratio {mean} +- {spread} leaves [0, 1]; iBOT uses 0.3 +- 0.2")
