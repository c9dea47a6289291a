"""What is evaluated, how, and its features: one forward pass over each set, kept by content."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from ..data.record import Source
from ..vit import ViT
from .crops import RandomCut
from .features import Features, Pool, Report, Room, extract, pixels
from .heads import Rows
from .labels import Note
from .shots import Shots
from .store import Store, stamp_of, weights_hash

Pooling = Literal["cls", "mean", "cls+mean"]
Layers = Literal["last", "best", "all"]
Form = Literal["common", "mae", "beit", "ibot", "own"]


class EvalModel(NamedTuple):
    """A backbone and the way its images must be prepared."""

    name: str
    backbone: ViT | None
    """None: the pixels are the features"""
    size: tuple[int, int]
    """(h, w) of the center crop, in pixels"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    value_range: tuple[float, float] | None = None
    pools: tuple[str, ...] = ("cls", "mean")
    """its method's own features, and so the next two"""
    layers: Literal["last", "best"] = "last"
    probe: Literal["common", "mae", "beit", "ibot"] = "common"


@dataclass(frozen=True)
class Settings:
    """How frozen features are judged; the fields of `evaluate`."""

    pools: tuple[Pooling, ...] | None = None
    layers: Layers | None = None
    ks: tuple[int, ...] = ()
    shots: tuple[Shots | None, ...] = (None,)
    seeds: int = 1
    probe: Form = "common"
    augment: int = 0
    seed: int = 0
    device: torch.device | str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    batch: int = 256
    workers: int = -1

    def form(self, model: EvalModel) -> Literal["common", "mae", "beit", "ibot"]:
        """The linear probe of a model; pixels have the common form alone."""
        if model.backbone is None:
            return "common"
        return model.probe if self.probe == "own" else self.probe


class Part(NamedTuple):
    """A model's features of the labelled images of one set."""

    values: dict[str, np.ndarray]
    """features by name, of all readable images; perhaps on disk"""
    known: Int[np.ndarray, "m"]
    """the labelled ones among them"""
    labels: Int[np.ndarray, "m ..."]
    """their classes, or a row of labels each"""
    places: Int[np.ndarray, "m"]
    """their places in the source"""

    def matrix(self, layer: str | int, pool: str) -> np.ndarray:
        """Features [m D] in memory: a pooling of a layer."""
        prefix = "" if layer == "last" else f"{layer}/"
        return np.concatenate([self.values[prefix + name][self.known] for name in pool.split("+")], axis=1)

    def rows(self, names: Sequence[str]) -> Rows:
        """Features that are read a batch at a time."""
        return Rows([self.values[name] for name in names], self.known)


def take(
    model: EvalModel,
    source: Source,
    labels: np.ndarray,
    pools: Sequence[str],
    layers: Sequence[int],
    how: Settings,
    *,
    cut: RandomCut | None = None,
    store: Store | None = None,
    data: str = "",
    part: str = "train",
    note: Note | None = None,
    progress: Callable[[str], Report] | None = None,
) -> Part:
    """Take a model's features of one set, from the store where they are there.

    Args:
        model: whose.
        source: images.
        labels: class of each image, -1 unknown; or a row of labels each.
        pools: `cls`, `mean`, `patches`; of no concern for pixels.
        layers: blocks whose poolings are wanted too.
        how: device, precision, batch, workers.
        cut: a random crop in place of the center.
        store: keeps features; None: memory does.
        data: the hash of the images' bytes; needed with a store.
        part: train or test, for what is said.
        note: told of skipped images.
        progress: as for `evaluate`.
    """
    names = [] if model.backbone is None else list(dict.fromkeys(pools))
    names = [*names, *(f"{i}/{pool}" for i in layers for pool in names if pool != "patches")] or ["pixels"]
    prepared: dict[str, Any] = {"size": model.size, "mean": model.mean, "std": model.std}
    prepared |= {"channels": model.channels, "value_range": model.value_range}

    def make(missing: list[str], room: Room | None) -> Features:
        report = progress(f"{model.name}: {part}") if progress else None
        run: dict[str, Any] = {"batch": how.batch, "workers": how.workers, "progress": report, "room": room}
        if model.backbone is None:
            return pixels(source, **prepared, **run)
        every: tuple[Pool, ...] = ("cls", "mean", "patches")
        kinds: list[Pool] = [pool for pool in every if any(name.endswith(pool) for name in missing)]
        deep = sorted({int(name.partition("/")[0]) for name in missing if "/" in name})
        return extract(
            model.backbone, source, **prepared, **run, pools=kinds, layers=deep, cut=cut,
            device=how.device, precision=how.precision,
        )  # fmt: skip

    if store is None:
        taken = make(names, None)
    else:
        stamp = stamp_of(weights_hash(model.backbone), data, cut=cut, precision=how.precision, **prepared)
        taken = store.take(stamp, names, make)
    if taken.skipped and note:
        note(f"{part}: {len(taken.skipped)} of {len(source)} images skipped, first: {taken.skipped[0]}")
    truth = labels[taken.rows]
    index = np.flatnonzero(truth >= 0) if truth.ndim == 1 else np.arange(len(truth))
    return Part(taken.values, index, truth[index], taken.rows[index])


def blocks_of(model: EvalModel, layers: Layers) -> tuple[int, ...]:
    """The blocks that are pooled beside the last layer."""
    return () if layers == "last" or model.backbone is None else tuple(range(1, len(model.backbone.blocks) + 1))
