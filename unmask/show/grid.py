"""The one look of all pictures: small multiples with labels, enlarged pixel by pixel, saved whole.

Figures are matplotlib's objects without its global state, so that a training process that draws
leaves no window and no backend behind.
"""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 200
"""dots an inch; type sizes below are points, 1/72 inch"""
INK, FAINT = "#1f2430", "#7a8190"
PALETTE = ("#2f5d9b", "#c4612d", "#3f8f6b", "#8a5aa3", "#a8892c", "#5b6472")
"""lines of charts: told apart by the color-blind, and when printed gray"""
SMALL, LARGE = 160, 360
"""pictures are enlarged by whole factors to at least SMALL dots, and shrunk to at most LARGE"""

Picture = UInt8[np.ndarray, "_ _ 3"]


def grid(
    pictures: Sequence[Sequence[Picture | None]],
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    note: str = "",
) -> Figure:
    """Lay pictures out in rows and columns.

    Args:
        pictures: rows of pictures, uint8 [h w 3]; None leaves a place empty. All are enlarged alike, so
            that smaller ones (local crops) stay in proportion.
        rows: labels at the left.
        columns: labels above.
        title: one line on top.
        note: smaller lines below; what one must know to read the picture rightly.
    Returns:
        a figure; an enlarged picture's every pixel is the same whole number of dots.
    Raises:
        ValueError: there is no picture.
    """
    shapes = [picture.shape for row in pictures for picture in row if picture is not None]
    if not shapes:
        raise ValueError("nothing to draw: the grid holds no picture; give at least one image")
    count, side = max(map(len, pictures)), max(max(shape) for shape in shapes)
    scale = -(-SMALL // side) if side < SMALL else min(1.0, LARGE / side)
    cell_w, gap = round(scale * max(shape[1] for shape in shapes)), 12
    sides = [[len(picture) for picture in row if picture is not None] for row in pictures]
    tall = [round(scale * max(row, default=0)) for row in sides]
    point = DPI / 72
    left = round(max((_measure(label, 8) for label in rows), default=0) + (14 * point if rows else 8 * point))
    body_w = count * (cell_w + gap) - gap
    width = max(left + body_w, round(_measure(title, 10) + 16 * point), 900 if note else 0) + round(8 * point)
    lines = textwrap.wrap(note, max(20, int((width - 16 * point) / (3.45 * point)))) if note else []
    top = round(8 * point + (20 * point if title else 0) + (14 * point if columns else 0))
    bottom = round(8 * point + 9.5 * point * len(lines))
    height = top + sum(tall) + (len(pictures) - 1) * gap + bottom
    figure = new_figure(width / DPI, height / DPI)

    def text(x: float, y: float, label: str, **how: Any) -> None:
        figure.text(x / width, 1 - y / height, label, **{"color": INK, **how})

    if title:
        text(8 * point, 8 * point, title, fontsize=10, va="top")
    for j, label in enumerate(columns):
        text(
            left + j * (cell_w + gap) + cell_w / 2,
            top - 4 * point,
            label,
            fontsize=8,
            ha="center",
            va="baseline",
        )
    for i, row in enumerate(pictures):
        y = top + sum(tall[:i]) + i * gap
        if rows:
            text(
                left - 5 * point,
                y + tall[i] / 2,
                rows[i],
                fontsize=8,
                ha="right",
                va="center",
                linespacing=1.3,
            )
        for j, picture in enumerate(row):
            if picture is not None:
                h, w = (round(side * scale) for side in picture.shape[:2])
                x, lower = left + j * (cell_w + gap) + (cell_w - w) // 2, y + (tall[i] + h) // 2
                axes = figure.add_axes((x / width, 1 - lower / height, w / width, h / height))
                axes.imshow(picture, interpolation="nearest" if scale >= 1 else "antialiased", aspect="auto")
                axes.set_axis_off()
    if lines:
        below = height - bottom + 4 * point
        text(8 * point, below, "\n".join(lines), fontsize=6.5, va="top", color=FAINT, linespacing=1.3)
    return figure


def _measure(label: str, size: float) -> float:
    """Dots that a label takes at most: a letter of DejaVu Sans is 0.62 of its size wide."""
    return max(map(len, label.split("\n"))) * 0.62 * size * DPI / 72


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) that draws by Agg, whatever the machine has for a screen."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, xlabel: str = "", ylabel: str = "") -> None:
    """Give a chart the house look: two spines, a faint grid, small type."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=7, colors=INK, length=2.5, color=FAINT)
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, fontsize=8, color=INK)
    axes.set_ylabel(ylabel, fontsize=8, color=INK)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure whole or not at all, in the format of its suffix; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(unfinished, format=path.suffix.lstrip(".") or "png", dpi=DPI)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
