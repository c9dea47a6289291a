"""Evaluation's way from a source to batches of uint8 crops, decoded by a few processes."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.decode import decode
from ..data.record import BadImage, Source, Subset
from ..framing import PLAIN, Frame, center
from ..randomness import key
from ..views import View, crop, plan


class Chunk(NamedTuple):
    """One loader batch: decoded and cropped, still uint8."""

    images: UInt8[Tensor, "B C h w"]
    labels: list[int]
    keys: list[str]
    rows: list[int]
    """each image's place in the source"""
    bad: list[str]
    """complaints about the unreadable ones"""


Item = tuple[Tensor, int, str, int]
"""image, label, key, place in the source"""
Cut = Callable[[UInt8[Tensor, "C H W"], int], UInt8[Tensor, "C h w"]]
"""(image, its place in the source) -> crop; goes to worker processes"""


@dataclass(frozen=True)
class CenterCut:
    """The evaluation crop of every image."""

    size: tuple[int, int]
    frame: Frame = PLAIN

    def __call__(self, image: UInt8[Tensor, "C H W"], place: int) -> UInt8[Tensor, "C h w"]:
        return center(image, self.size, self.frame)


@dataclass(frozen=True)
class RandomCut:
    """One random resized crop and mirroring of each image: what published linear probes train on.

    The number names the draw: crop n of an image is the same in every run of one seed.
    """

    size: tuple[int, int]
    number: int
    """which of the image's random crops"""
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    """BEiT, iBOT: bilinear; MAE: bicubic"""
    single_draw: bool = False
    """MAE's box: one draw of area and ratio, clipped to the image, not ten tries for one that fits"""
    seed: int = 0

    def __call__(self, image: UInt8[Tensor, "C H W"], place: int) -> UInt8[Tensor, "C h w"]:
        rng = key(self.seed, "probe", "view", self.number, place)
        view = View(self.size, scale=(0.08, 1.0), interpolation=self.interpolation)
        drawn = plan(view, (image.shape[1], image.shape[2]), rng)
        if self.single_draw:
            drawn = drawn._replace(box=single_draw_box((image.shape[1], image.shape[2]), rng))
        return crop(image, drawn)


def single_draw_box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box of MAE's `util/crop.py` (TensorFlow's rule): area U(0.08, 1), log-uniform ratio, clipped.

    Returns:
        top, left, height, width in pixels, inside the image.
    """
    height, width = size
    area, ratio = height * width * rng.uniform(0.08, 1.0), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


class Crops(Dataset):
    """Decode and cut record `i` of a source; an unreadable one is its complaint."""

    def __init__(self, source: Source, cut: Cut, channels: int, value_range: tuple[float, float] | None):
        self.source, self.cut, self.channels, self.value_range = source, cut, channels, value_range

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item | str:
        try:
            record = self.source[index]
            image = self.cut(decode(record, channels=self.channels, value_range=self.value_range), index)
        except BadImage as error:
            return str(error)
        return image, record.label, record.key, index


def collate(items: list[Item | str]) -> Chunk:
    """Stack what could be read."""
    good = [item for item in items if not isinstance(item, str)]
    bad = [item for item in items if isinstance(item, str)]
    if not good:
        return Chunk(torch.empty(0, 0, 0, 0, dtype=torch.uint8), [], [], [], bad)
    images, labels, keys, rows = map(list, zip(*good, strict=True))
    return Chunk(torch.stack(images), labels, keys, rows, bad)


def crops(
    source: Source,
    size: tuple[int, int],
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    batch: int = 256,
    workers: int = -1,
    cut: Cut | None = None,
) -> DataLoader:
    """Iterate over a source in its order, as Chunks.

    Args:
        source: images.
        size: (h, w) of the center crop, in pixels.
        channels: of the decoded image.
        value_range: for 16-bit and float images, what becomes 0 and 255.
        batch: images of a chunk.
        workers: decoding processes; -1: up to four, none for small sets.
        cut: instead of the center crop, e.g. a RandomCut.
    """
    if workers < 0:  # to start a process costs as much as to decode hundreds of small images
        workers = 0 if len(source) < 1024 else min(4, os.cpu_count() or 1)
    dataset = Crops(source, cut or CenterCut(size), channels, value_range)
    aside = torch.Generator()  # the loader draws a seed: not from the stream that training uses
    return DataLoader(
        dataset,
        batch_size=batch,
        num_workers=workers,
        collate_fn=collate,
        generator=aside,
        # as training's; a process that Python starts anew imports torch first: seconds, at every evaluation of a run
        multiprocessing_context="fork" if workers else None,
    )


def sample(source: Source, count: int, seed: int) -> Source:
    """At most `count` records, chosen by the seed and kept in the source's order."""
    if len(source) <= count:
        return source
    chosen = key(seed, "evaluate", "sample").choice(len(source), count, replace=False)
    return Subset(source, np.sort(chosen))
