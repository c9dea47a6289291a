"""The small loop that trains classifiers on features: published probes and the attentive probe.

Not `train.train`: nothing here augments, saves or resumes, and an epoch takes less than a second. The
features are frozen arrays, so that no gradient can reach a backbone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from ..randomness import fold, key
from ..schedules import Progress

Loss = Callable[[Float[Tensor, "B ..."], Int[Tensor, "B"]], Float[Tensor, ""]]


class Rows(NamedTuple):
    """Features of some images, read when they are asked for: arrays that may lie on disk, side by side."""

    arrays: Sequence[np.ndarray]
    """each [S ...]; with several, a row is [A ...]"""
    places: Int[np.ndarray, "m"]
    """of the images in the arrays, in the images' order"""
    then: Callable[[Tensor], Tensor] | None = None
    """applied to what was read, e.g. a frozen final norm"""

    def read(self, rows: Int[np.ndarray, "B"], device: torch.device | str) -> Float[Tensor, "B ..."]:
        """Features of some of the images as fp32 on the device."""
        parts = [torch.from_numpy(np.asarray(array[self.places[rows]])).to(device).float() for array in self.arrays]
        tensor = parts[0] if len(parts) == 1 else torch.stack(parts, dim=1)
        return tensor if self.then is None else self.then(tensor)

    def of(self, rows: Int[np.ndarray, "B"]) -> "Rows":
        """Some of these images."""
        return self._replace(places=self.places[rows])


@dataclass(frozen=True)
class Plan:
    """How long and in which steps."""

    epochs: int
    batch: int
    """images a step; a last incomplete batch is left out, as in the papers' code"""
    lr: Callable[[Progress], float]
    """of every step; a group's own factor is its `lr_scale`"""
    seed: int = 0


def fitting_batch(published: int, images: int) -> int:
    """The published batch, or a twentieth of the images where they are few: an epoch has steps enough."""
    return min(published, max(8, images // 20), images)


def fit(
    head: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    views: Sequence[Rows],
    labels: Int[np.ndarray, "S"],
    plan: Plan,
    device: torch.device | str,
) -> nn.Module:
    """Train a head in place; epoch e reads rendering e modulo their number.

    Args:
        head: on the device; it may hold many classifiers at once.
        loss: of a batch of features and labels; calls the head.
        optimizer: over the head; groups may have an `lr_scale`.
        views: renderings of the same images in the same order.
        labels: 0 ... C-1 of each image.
        plan: epochs, batch and schedule.
        device: of the head.
    Returns:
        the head, in evaluation mode.
    """
    head.train()
    truth, per_epoch = torch.from_numpy(labels).to(device), max(1, len(labels) // plan.batch)
    for epoch in range(plan.epochs):
        order = key(plan.seed, "heads", epoch).permutation(len(labels))
        for i in range(per_epoch):
            rows = np.sort(order[i * plan.batch : (i + 1) * plan.batch])  # rising: the disk reads forwards
            at = Progress(epoch * per_epoch + i, plan.epochs * per_epoch, per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = plan.lr(at) * group.get("lr_scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            loss(views[epoch % len(views)].read(rows, device), truth[rows]).backward()
            optimizer.step()
    return head.eval()


@torch.no_grad()
def logits(head: nn.Module, view: Rows, device: torch.device | str, batch: int = 512) -> Float[Tensor, "Q ..."]:
    """Answers of a head to all features, a batch at a time, on the CPU."""
    rows = np.arange(len(view.places))
    return torch.cat([head(view.read(rows[i : i + batch], device)).cpu() for i in range(0, len(rows), batch)])


@contextmanager
def seeded(seed: int, *place: str) -> Iterator[None]:
    """Draw fresh weights from a named seed, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, *place))
        yield


@dataclass(frozen=True)
class EpochCosine:
    """Half a cosine to 0 that moves once an epoch: torch's CosineAnnealingLR, stepped per epoch (BEiT, iBOT)."""

    peak: float

    def __call__(self, at: Progress) -> float:
        return self.peak * 0.5 * (1 + math.cos(math.pi * int(at.epoch + 1e-9) / at.epochs))


def numbered(labels: Int[np.ndarray, "S"]) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "S"]]:
    """The classes that occur, and each label as its place among them."""
    return np.unique(labels, return_inverse=True)
