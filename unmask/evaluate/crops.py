"""Evaluation's way from a source to batches of uint8 center crops, decoded by a few processes."""

import os
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.decode import decode
from ..data.record import BadImage, Source, Subset
from ..randomness import key
from ..views import center


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


class Crops(Dataset):
    """Decode and center-crop record `i` of a source; an unreadable one is its complaint."""

    def __init__(self, source: Source, size: tuple[int, int], channels: int, value_range: tuple[float, float] | None):
        self.source, self.size, self.channels, self.value_range = source, size, channels, value_range

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item | str:
        try:
            record = self.source[index]
            image = center(decode(record, channels=self.channels, value_range=self.value_range), self.size)
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
) -> DataLoader:
    """Iterate over a source in its order, as Chunks.

    Args:
        source: images.
        size: (h, w) of the center crop, in pixels.
        channels: of the decoded image.
        value_range: for 16-bit and float images, what becomes 0 and 255.
        batch: images of a chunk.
        workers: decoding processes; -1: up to four, none for small sets.
    """
    if workers < 0:  # to start a process costs as much as to decode hundreds of small images
        workers = 0 if len(source) < 1024 else min(4, os.cpu_count() or 1)
    dataset = Crops(source, size, channels, value_range)
    aside = torch.Generator()  # the loader draws a seed: not from the stream that training uses
    return DataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=collate, generator=aside)


def sample(source: Source, count: int, seed: int) -> Source:
    """At most `count` records, chosen by the seed and kept in the source's order."""
    if len(source) <= count:
        return source
    chosen = key(seed, "evaluate", "sample").choice(len(source), count, replace=False)
    return Subset(source, np.sort(chosen))
