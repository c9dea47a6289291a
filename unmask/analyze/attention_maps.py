"""Attention between patches, measured block by block and head by head: what A1 and A2 share."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..evaluate.features import evaluating
from . import charts
from .intervals import Estimate, mean_of
from .subject import Ask, Finding, Pictures, Subject, look, minibatches, names

Measure = Callable[[Float[Tensor, "B H N N"], Subject], Float[Tensor, "B H"]]
"""a number for each image and head, from attention between patches"""


def between_patches(attention: Float[Tensor, "B H T T"], prefix: int) -> Float[Tensor, "B H N N"]:
    """Leave the class token and registers out, as queries and as keys, and let every row add up to 1 again."""
    inner = attention[:, :, prefix:, prefix:].float()
    return inner / inner.sum(-1, keepdim=True).clamp(min=1e-30)


@torch.no_grad()
def measure(subject: Subject, pictures: Pictures, of: Measure, what: str) -> Float[np.ndarray, "S L H"]:
    """A number for each image, block and head; attention is in memory for 16 images at a time."""
    vit, rows = subject.network(what), []
    with evaluating(vit):
        for images in minibatches(subject, pictures, 16):
            maps = vit.attention(images)
            inner = [between_patches(block, 1 + vit.config.registers) for block in maps]
            rows.append(torch.stack([of(block, subject) for block in inner], dim=1).cpu())
    return torch.cat(rows).numpy()


def by_layer(
    subjects: Sequence[Subject],
    ask: Ask,
    of: Measure,
    *,
    what: str,
    unit: str,
    levels: Sequence[tuple[float, str]],
    note: str,
) -> Finding:
    """Measure models and draw the mean over heads by layer, the heads as dots.

    Args:
        subjects: the models.
        ask: the request.
        of: the measure.
        what: the analysis, for messages.
        unit: of the vertical axis.
        levels: values to compare with, named.
        note: how to read the figure.
    """
    source, numbers = ask.source(what), {}
    figure, (axes,) = charts.panels([""], note=note, width=5.2, height=3.0)
    for i, (subject, label) in enumerate(zip(subjects, names(subjects), strict=True)):
        values = measure(subject, look(subject, source, ask), of, what)
        heads, layers = mean_of(values, ask.seed), mean_of(values.mean(2), ask.seed)
        numbers[subject.name] = {"images": len(values), "layers": layers, "heads": heads}
        draw(axes, layers, heads, charts.color(i), label)
    for value, text in levels:
        charts.level(axes, value, text)
    charts.labels(axes, "block", unit)
    charts.whole(axes)
    charts.legend(axes)
    return Finding(numbers, figure)


def draw(axes: charts.Axes, layers: Estimate, heads: Estimate, ink: str, label: str) -> None:
    """One model: the mean over heads as a line with its interval, the heads as dots."""
    places = np.arange(1, len(layers.value) + 1)
    charts.dots(axes, places, heads.value, ink)
    charts.curve(axes, places, layers, ink, label)
