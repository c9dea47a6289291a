"""Mixup (Zhang et al. 2017, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), as timm mixes them.

Two images make two mixtures: lambda of one and 1 - lambda of the other, in their pixels (mixup) or in their
areas (CutMix); the labels are mixed alike. Differs from timm: an image's partner is its neighbor, positions 2 k
and 2 k + 1, where timm flips the batch; batches are shuffled, so that both pair at random, but a neighbor stays
in the same micro-batch however a step is divided over devices. Hence a micro-batch must be even.
torchvision's MixUp and CutMix draw from torch's global generator, which could not be named.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .randomness import key


@dataclass(frozen=True)
class Mix:
    """The policy; defaults: DeiT's, MAE's, BEiT's and iBOT's."""

    mixup: float = 0.8
    """alpha of mixup's Beta(alpha, alpha); 0: no mixup"""
    cutmix: float = 1.0
    """alpha of CutMix; 0: no CutMix"""
    p: float = 1.0
    """chance that a group of images is mixed at all"""
    switch: float = 0.5
    """chance of CutMix where both are on"""
    share: int = 128
    """images that share one draw; timm's mode `batch` draws once for the batch of a device; even"""

    def __post_init__(self) -> None:
        if self.share < 2 or self.share % 2:
            raise ValueError(f"mix: share {self.share} images a draw; images are mixed in pairs, give an even number")
        if self.mixup < 0 or self.cutmix < 0 or not self.mixup + self.cutmix > 0:
            raise ValueError(f"mix: mixup {self.mixup}, cutmix {self.cutmix}; give one above 0, or no Mix at all")


class Mixed(NamedTuple):
    """What is done to rows first ... last - 1 of a batch."""

    first: int
    last: int
    weight: float
    """lambda: the share of an image's own label; the rest is its partner's"""
    box: tuple[int, int, int, int] | None
    """top, bottom, left, right of what is pasted from the partner (CutMix); None: pixels are mixed"""


def draw_mixed(mix: Mix, shape: tuple[int, int], rng: np.random.Generator) -> tuple[float, tuple | None]:
    """Draw lambda, and CutMix's box, for the images of one group.

    Source: timm's `Mixup._params_per_batch` and `rand_bbox`: lambda is corrected to the area of the box where
    the image's edge cuts it.
    """
    if rng.random() >= mix.p:
        return 1.0, None
    cut = mix.mixup == 0 or (mix.cutmix > 0 and bool(rng.random() < mix.switch))
    alpha = mix.cutmix if cut else mix.mixup
    weight = float(rng.beta(alpha, alpha))
    if not cut:
        return weight, None
    height, width = shape
    half_h, half_w = (int(side * math.sqrt(1 - weight)) // 2 for side in shape)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - half_h, 0), min(y + half_h, height)
    left, right = max(x - half_w, 0), min(x + half_w, width)
    return 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)


def plan_mixed(
    mix: Mix | None, shape: tuple[int, int], seed: int, view: int, positions: Sequence[int]
) -> tuple[Mixed, ...]:
    """Plan how a view of consecutive samples is mixed: a draw for each `share` positions of the run."""
    if mix is None:
        return ()
    first, end = positions[0], positions[-1] + 1
    edges = [p for p in range(first, end) if p == first or p % mix.share == 0] + [end]
    drawn = [draw_mixed(mix, shape, key(seed, "mix", view, start // mix.share)) for start in edges[:-1]]
    runs = zip(edges[:-1], edges[1:], drawn, strict=True)
    return tuple(Mixed(start - first, stop - first, weight, box) for start, stop, (weight, box) in runs)


def mix_images(images: Float[Tensor, "B C h w"], mixed: tuple[Mixed, ...]) -> None:
    """Mix each image with its neighbor, in place."""
    for first, last, weight, box in mixed:
        own = images[first:last]
        if box is not None:
            top, bottom, left, right = box
            own[:, :, top:bottom, left:right] = neighbors(own[:, :, top:bottom, left:right])
        elif weight != 1.0:
            own.lerp_(neighbors(own), 1 - weight)


def neighbors(values: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """The values of the partners: rows 1, 0, 3, 2, ..."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def own_shares(mixed: tuple[Mixed, ...]) -> Float[Tensor, "B"]:
    """Lambda of each row of a batch, on the CPU."""
    return torch.cat([torch.full((last - first,), weight) for first, last, weight, _ in mixed])
