"""What an analysis gets and gives: opened models, images, a request; numbers and a figure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from ..config import RunConfig
from ..data.record import Source, Subset
from ..data.stream import Stream
from ..evaluate.crops import crops, sample
from ..evaluate.features import evaluating, pool
from ..evaluate.knn import KNN
from ..methods.base import Batch, Method, Progress
from ..parallel import World
from ..positions import pair
from ..randomness import key
from ..run import Run
from ..step import share_hidden, to_device
from ..views import resize
from ..vit import ViT

BATCH = 64
"""images of a forward pass"""
M = TypeVar("M", bound=Method)


class Subject(NamedTuple):
    """One MODEL, opened."""

    name: str
    method: Method
    """with its weights, fp32, in evaluation mode, on `device`"""
    vit: ViT | None
    """the network to look at: the student's or the teacher's; None: a tokenizer has none"""
    config: RunConfig
    run: Run | None = None
    """None: never trained"""
    step: int = 0
    """of the weights"""

    @property
    def device(self) -> torch.device:
        return next(self.method.parameters()).device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images it reads, in pixels."""
        if self.vit is not None:
            return self.vit.config.image_hw
        view = self.config.method.views[0]
        return pair(view.twin or view.size)

    def on(self, device: torch.device | str) -> "Subject":
        """The same, with its weights there."""
        self.method.to(device)
        return self

    def network(self, what: str) -> ViT:
        """The ViT.

        Raises:
            ValueError: this model has none.
        """
        if self.vit is None:
            raise ValueError(f"{self.name} is a {type(self.method).__name__}, which has no ViT; {what} needs one")
        return self.vit

    def of(self, what: str, *kinds: type[M]) -> M:
        """The method, which must be one of `kinds`.

        Raises:
            ValueError: it is another.
        """
        if not isinstance(self.method, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{self.name} is a {type(self.method).__name__}; {what} is measured on {names}")
        return self.method

    def trained(self, what: str) -> Run:
        """The run.

        Raises:
            ValueError: this model was never trained.
        """
        if self.run is None:
            raise ValueError(f"{self.name} has no run to go on from or to look back at; {what} needs a RUN")
        return self.run

    def at(self) -> Progress:
        """Where the run was when it had these weights: schedules are evaluated here."""
        steps = self.config.steps or max(self.step, 1)
        if self.config.steps is None and self.config.epochs is not None and self.config.data.images:
            steps = max(1, round(self.config.epochs * self.config.data.images / self.config.batch))
        per_epoch = max(self.config.data.images, self.config.batch) / self.config.batch
        return Progress(min(self.step, steps - 1), steps, per_epoch)


@dataclass(frozen=True)
class Ask:
    """What is asked of an analysis, beside the models."""

    data: Source | None = None
    """DATA"""
    train: Source | None = None
    """labelled images that k-NN learns from, or that a run goes on with; None: see `halves`"""
    count: int = 500
    """images measured, at most"""
    seed: int = 0
    """of the sample of images, masks, noise and the bootstrap"""
    steps: int = 500
    """optimizer steps of a continuation"""

    def source(self, what: str) -> Source:
        """DATA.

        Raises:
            ValueError: none was given.
        """
        if self.data is None:
            raise ValueError(f"{what} needs DATA: a folder, a file or a quoted glob, tar, parquet or demo:test")
        return self.data


class Finding(NamedTuple):
    """What an analysis found."""

    numbers: dict[str, Any]
    """arrays, Estimates and plain values; `intervals.plain` makes JSON of it"""
    figure: Figure


class Pictures(NamedTuple):
    """Decoded center crops of one size, on the CPU."""

    images: UInt8[Tensor, "S C h w"]
    labels: Int[np.ndarray, "S"]
    """class of each image, -1 unknown"""


def look(subject: Subject, source: Source, ask: Ask, size: tuple[int, int] | None = None) -> Pictures:
    """Read the images of an analysis as this model does: the same ones for every model.

    Args:
        subject: gives channels, range and, unless `size` does, the size.
        source: at most `ask.count` of its images, chosen by the seed; bad ones are left out.
        ask: the request.
        size: (height, width) of the center crop.
    Raises:
        ValueError: none can be read.
    """
    data = subject.config.data
    loader = crops(sample(source, ask.count, ask.seed), size or subject.size, data.channels, data.range, BATCH, 0)
    chunks = [chunk for chunk in loader if chunk.keys]
    if not chunks:
        raise ValueError(f"{source.name}: none of its images can be read; check the path and the files")
    labels = np.array([label for chunk in chunks for label in chunk.labels], np.int64)
    return Pictures(torch.cat([chunk.images for chunk in chunks]), labels)


def normalized(subject: Subject, images: UInt8[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Bring images to what the model was trained on, on its device."""
    mean, std = _statistics(subject)
    return (images.to(subject.device).float() / 255 - mean) / std


def unit(subject: Subject, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Undo the normalization: images in [0, 1]."""
    mean, std = _statistics(subject)
    return images * std + mean


def _statistics(subject: Subject) -> tuple[Float[Tensor, "C 1 1"], Float[Tensor, "C 1 1"]]:
    data = subject.config.data
    mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (data.mean, data.std))
    return mean.to(subject.device), std.to(subject.device)


def minibatches(subject: Subject, pictures: Pictures, size: int = BATCH) -> Iterator[Float[Tensor, "_ C h w"]]:
    """The images, normalized, in their order, `size` at a time."""
    for images in pictures.images.split(size):
        yield normalized(subject, images)


def twins(subject: Subject, images: UInt8[Tensor, "B C h w"]) -> Float[Tensor, "B C t t"]:
    """What a tokenizer reads of the same crops, in [0, 1]: resized (bicubic) to the side it was trained on.

    Differs from training: the crop is resized once more, instead of the original once by Lanczos.
    """
    view = subject.config.method.views[0]
    side = pair(view.twin or view.size)
    return torch.stack([resize(image, side, "bicubic") for image in images]).to(subject.device).float() / 255


@torch.no_grad()
def embed(vit: ViT, batches: Iterator[Float[Tensor, "_ C h w"]]) -> dict[str, Float[Tensor, "S D"]]:
    """Frozen features of images, by pooling: `cls` and `mean`, after the final norm."""
    found: dict[str, list[Tensor]] = {"cls": [], "mean": []}
    with evaluating(vit):
        for images in batches:
            tokens = vit(images)
            found["cls"].append(pool(tokens, "cls").cpu())
            found["mean"].append(pool(tokens, "mean").cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def halves(source: Source, ask: Ask, what: str) -> tuple[Source, Source]:
    """Labelled images for k-NN: to learn from, and to be judged by.

    Without --train, every second image of each class of DATA is learned from and the others are judged.

    Raises:
        ValueError: DATA, or --train, has no labels.
    """
    for part, given in (("DATA", source), ("--train", ask.train or source)):
        if given.labels is None or not (np.asarray(given.labels) >= 0).any():
            raise ValueError(f"{what} judges by k-NN and {part} has no labels; give images in one folder a class")
    if ask.train is not None:
        return ask.train, source
    labels = np.asarray(source.labels)
    order = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    known = labels >= 0
    return Subset(source, np.flatnonzero(known & (rank % 2 == 0))), Subset(
        source, np.flatnonzero(known & (rank % 2 == 1))
    )


def right(
    bank: Float[Tensor, "S D"], known: Int[np.ndarray, "S"], asked: Float[Tensor, "Q D"], truth: Int[np.ndarray, "Q"]
) -> Float[np.ndarray, "Q"]:
    """Whether weighted k-NN (k 20, or all images where there are fewer) is right, image by image: 0 or 1."""
    fitted = KNN(k=min(20, len(bank))).fit(bank, known, classes=int(max(known.max(), truth.max())) + 1)
    return (fitted.predict(asked).cpu().numpy() == truth).astype(np.float64)


def training_batches(subject: Subject, source: Source, ask: Ask, size: int = BATCH) -> Iterator[Batch]:
    """Views and masks as this method trains on them, drawn once and for all by the seed: `ask.count` images."""
    config, count = subject.config, min(ask.count, len(source))
    size = min(size, count)
    stream = Stream(
        source,
        views=config.method.views,
        masks=config.method.masks,
        grids=config.method.grids(),
        seed=ask.seed,
        batch=size,
        device_batch=size,
        steps=count // size,
        channels=config.data.channels,
        value_range=config.data.range,
    )
    world = World(0, 1, subject.device)
    for hosts in stream:
        batches = [to_device(host, config, subject.device) for host in hosts]
        share_hidden(batches, world)
        yield from batches


def draw_masks(subject: Subject, count: int, seed: int) -> torch.Tensor:
    """A mask an image from the method's own policy, at least one patch hidden and one visible: bool [B N]."""
    masks = subject.config.method.masks
    if not masks:
        raise ValueError(f"{subject.name} hides no patches; give a model that does")
    policy, grid, drawn = masks[0], subject.config.method.grids()[0], []
    for i in range(count):
        attempt = 0
        while not 0 < (mask := policy(grid, key(seed, "analyze", "mask", i, attempt))).sum() < mask.size:
            attempt += 1
        drawn.append(torch.from_numpy(mask).flatten())
    return torch.stack(drawn).to(subject.device)


def names(subjects: Sequence[Subject]) -> list[str]:
    """Labels for a figure's legend: a run by its folder's name, unless two share it."""
    short = [subject.name.rstrip("/").rpartition("/")[2] for subject in subjects]
    return short if len(set(short)) == len(short) else [subject.name for subject in subjects]


def one(subjects: Sequence[Subject], what: str) -> tuple[Subject]:
    """The only model.

    Raises:
        ValueError: there are several.
    """
    if len(subjects) != 1:
        raise ValueError(f"{what} looks at one run at a time and got {len(subjects)}; give one MODEL")
    return (subjects[0],)
