"""Which classes a classifier takes for which: the confusion matrix beside the accuracy of each class."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import confusion_matrix

from .grid import INK, PALETTE, new_figure, save, tidy

if TYPE_CHECKING:
    from ..evaluate import Assessment

LEGIBLE = 60
"""classes up to which each has its name beside its row"""


def draw(
    labels: Int[np.ndarray, "Q"],
    predicted: Int[np.ndarray, "Q"],
    path: str | Path,
    *,
    names: list[str] | None = None,
    title: str = "",
) -> Path:
    """Draw the confusion matrix, row by row in fractions of the true class, and each class's accuracy.

    Args:
        labels: true class of each test image.
        predicted: its predicted class.
        path: of the picture.
        names: of the classes; None: their numbers.
        title: one line on top.
    Returns:
        the path.
    """
    present = np.unique(np.concatenate([labels, predicted]))
    counts = confusion_matrix(labels, predicted, labels=present)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    words = [_short(names[i]) if names and i < len(names) else str(i) for i in present]
    n = len(present)
    side = min(max(3.0, 0.2 * n), 12.0)
    margin = 0.075 * max(map(len, words)) + 0.3 if n <= LEGIBLE else 0.6  # inches for the names
    width, height = margin + side + 2.6, side + margin + 0.7
    figure = new_figure(width, height)
    bottom = (margin + 0.2) / height
    matrix = figure.add_axes((margin / width, bottom, side / width, side / height))
    matrix.imshow(share, cmap="Blues", vmin=0, interpolation="nearest")
    matrix.set_xlabel(f"predicted; darkest: {100 * share.max():.0f} % of its row", fontsize=8, color=INK)
    matrix.set_ylabel("true", fontsize=8, color=INK)
    bars = figure.add_axes(((margin + side + 0.25) / width, bottom, 2.0 / width, side / height), sharey=matrix)
    bars.barh(np.arange(n), share.diagonal(), color=PALETTE[0], height=0.8)
    bars.axvline(float(share.diagonal()[counts.sum(1) > 0].mean()), color=INK, linewidth=0.8, linestyle="--")
    bars.set_xlim(0, 1)
    bars.xaxis.set_major_formatter(PercentFormatter(1.0))
    tidy(bars, xlabel="right, by true class (dashed: mean)")
    bars.tick_params(axis="y", length=0, labelleft=False)
    if n <= LEGIBLE:
        matrix.set_xticks(range(n), words, rotation=90, fontsize=7)
        matrix.set_yticks(range(n), words, fontsize=7)
    if title:
        figure.text(0.02, 1 - 0.12 / height, title, ha="left", va="top", fontsize=9)
    return save(figure, path)


def draw_all(found: "Assessment", folder: str | Path) -> list[Path]:
    """Draw the best row of each model and protocol, the first draw of labels where there are several."""
    names, paths = found.facts["data"]["train"]["classes"], []
    kinds = dict.fromkeys(
        (answer.row["model"], answer.row["protocol"]) for answer in found.answers if "map" not in answer.row
    )
    models = {model for model, _ in kinds}
    for model, protocol in kinds:
        best = max(
            (each for each in found.answers if (each.row["model"], each.row["protocol"]) == (model, protocol)),
            key=lambda each: each.row["top1"],
        )
        row = best.row
        about = [protocol, row["features"], f"k {row['k']}" if row["k"] else "", str(row.get("shots", ""))]
        title = f"{model}: {', '.join(word for word in about if word)}: {100 * row['top1']:.1f} % right"
        alone = sum(Path(other).name == Path(model).name for other in models) == 1
        file = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{Path(model).name if alone else model}-{protocol}").strip("-") + ".png"
        paths.append(draw(best.labels, best.predicted[0], Path(folder) / file, names=names, title=title))
    return paths


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "~"
