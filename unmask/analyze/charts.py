"""The one look of all analyses' figures: panels side by side, a curve a model, bands for intervals."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..show.grid import FAINT, INK, PALETTE, new_figure, tidy
from .intervals import Estimate

Places = Float[np.ndarray, "n"] | Int[np.ndarray, "n"]
LAYERS = "viridis"
"""matplotlib's name for the colors of layers, first to last"""


def panels(
    titles: Sequence[str], *, note: str, rows: int = 1, width: float = 3.3, height: float = 2.7
) -> tuple[Figure, list[Axes]]:
    """An empty figure with a panel for each title, and what one must know to read it below.

    Args:
        titles: one a panel, row by row.
        note: smaller lines below.
        rows: of panels.
        width, height: of a panel, in inches.
    """
    columns = -(-len(titles) // rows)
    wide = max(columns * width, 4.6)
    lines = textwrap.wrap(note, int(wide * 20.5))
    margin = 0.12 * len(lines) + 0.12
    tall = rows * height + margin
    figure = new_figure(wide, tall)
    part = margin / tall
    figure.set_layout_engine("constrained", rect=(0, part, 1, 1 - part), w_pad=0.08, h_pad=0.06)
    figure.text(0.08 / wide, 0.07 / tall, "\n".join(lines), fontsize=6.5, va="bottom", color=FAINT, linespacing=1.3)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, title in zip(grid, titles, strict=False):
        tidy(axes)
        axes.set_title(title, fontsize=8.5, loc="left", color=INK)
    for axes in grid[len(titles) :]:
        axes.set_axis_off()
    return figure, list(grid[: len(titles)])


def color(i: int) -> str:
    """Of the i-th model."""
    return PALETTE[i % len(PALETTE)]


def labels(axes: Axes, x: str, y: str) -> None:
    """Name both axes."""
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)


def curve(axes: Axes, x: Places, estimate: Estimate, ink: str, label: str = "", **how: Any) -> None:
    """A line with its interval as a band."""
    axes.fill_between(x, estimate.low, estimate.high, color=ink, alpha=0.18, linewidth=0)
    style = {"linewidth": 1.4, "marker": "o", "markersize": 3} | how
    axes.plot(x, estimate.value, color=ink, label=label, **style)


def dots(axes: Axes, x: Places, values: Float[np.ndarray, "n m"], ink: str) -> None:
    """The m single values behind each of n points, small and faint."""
    places = np.repeat(np.asarray(x, np.float64), values.shape[1])
    axes.plot(places, values.flatten(), ".", color=ink, alpha=0.6, markersize=5, markeredgewidth=0)


def level(axes: Axes, y: float, text: str) -> None:
    """A dashed line to compare with, and its name."""
    axes.axhline(y, color=FAINT, linewidth=0.8, linestyle="--")
    axes.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
        fontsize=6.5, ha="right", va="bottom", color=FAINT,
    )  # fmt: skip


def bars(axes: Axes, groups: Sequence[str], series: Sequence[tuple[str, Estimate]]) -> None:
    """Bars side by side, a group for each name and a color for each model, with intervals."""
    width = 0.8 / max(len(series), 1)
    for i, (name, estimate) in enumerate(series):
        places = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        spread = np.abs(np.stack([estimate.value - estimate.low, estimate.high - estimate.value]))
        axes.bar(places, estimate.value, width * 0.92, color=color(i), label=name)
        axes.errorbar(places, estimate.value, yerr=spread, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)
    axes.set_xticks(range(len(groups)), groups)


def legend(axes: Axes, **how: Any) -> None:
    """Name the curves, without a frame; nothing where no curve has a name."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**{"fontsize": 6.5, "frameon": False, "labelcolor": INK, "handlelength": 1.4} | how)


def whole(axes: Axes) -> None:
    """Ticks at whole numbers only: layers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def percent(axes: Axes) -> None:
    """Fractions as percent."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
