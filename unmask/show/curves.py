"""How a run went: loss, accuracy, learning rate and the method's own health, from its metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from ..run import read_metrics
from .grid import FAINT, INK, PALETTE, new_figure, save, tidy
from .panels import PERCENT, legend, panels


def smooth(
    values: Float[np.ndarray, "n"], places: Float[np.ndarray, "n"], width: float = 0.1
) -> Float[np.ndarray, "n"]:
    """Average over a window that grows with the place: places within a factor 1 +- width.

    Early losses fall within a few steps and late ones within thousands, so a window of fixed length is
    wrong at one end. Equal to a fixed window on a logarithmic axis.
    """
    low = np.searchsorted(places, places * (1 - width), side="left")
    high = np.searchsorted(places, places * (1 + width), side="right")
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[high] - total[low]) / (high - low)


def draw(
    metrics: str | Path | Sequence[dict[str, Any]],
    path: str | Path,
    *,
    title: str = "",
) -> Path:
    """Save the curves of one run, each on its own panel below the other; related ones share a panel.

    A student's accuracy is a dashed line in the color of its teacher's.

    Args:
        metrics: a run directory, its metrics.jsonl, or the lines of it.
        path: of the picture.
        title: one line on top.
    Returns:
        the path.
    Raises:
        ValueError: nothing of it has been logged yet.
    """
    lines = read_metrics(metrics) if isinstance(metrics, (str, Path)) else metrics
    axis = "images" if any("images" in line for line in lines) else "step"
    series = {name: _series(lines, name, axis) for _, names in panels(lines) for name in names}
    drawn = [(label, [name for name in names if len(series[name][0])]) for label, names in panels(lines)]
    drawn = [(label, names) for label, names in drawn if names]
    if not drawn:
        raise ValueError("no curve to draw: the log has no loss, lr or eval/ yet; train some steps first")
    heights = [2.2 if label in ("loss", "accuracy") else 1.5 if len(names) > 1 else 1.2 for label, names in drawn]
    figure = new_figure(6.4, sum(heights) + 0.5 + (0.3 if title else 0))
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.06)
    if title:
        figure.suptitle(title, x=0.015, ha="left", fontsize=10, color=INK)
    stack = figure.subplots(len(drawn), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (label, names) in zip(stack, drawn, strict=True):
        tidy(axes, ylabel=label.replace("_", " "))
        if label == "loss":
            _loss(axes, *series["loss"])
        else:
            _lines(axes, label, {name: series[name] for name in names})
    stack[-1].set_xlabel("images seen" if axis == "images" else "optimizer steps", fontsize=8, color=INK)
    stack[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    stack[-1].set_xlim(left=0)
    figure.align_ylabels(list(stack))
    return save(figure, path)


def _series(lines: Sequence[dict[str, Any]], name: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line[axis], line[name]) for line in lines if line.get(name) is not None and axis in line]
    places, values = np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T
    return places, values


def _loss(axes: Axes, places: np.ndarray, values: np.ndarray) -> None:
    """Every value in gray, their trend on top."""
    axes.plot(places, values, color=FAINT, linewidth=0.5, alpha=0.5)
    axes.plot(places, smooth(values, places), color=PALETTE[0], linewidth=1.6)
    settled = values[len(values) // 50 :]  # the first steps of a run would flatten all that follows
    low, high = settled.min(), settled.max()
    axes.set_ylim(low - 0.05 * (high - low + 1e-9), high + 0.05 * (high - low + 1e-9))


def _lines(axes: Axes, label: str, series: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """One line a number; those that are measured now and then, on held-out images, have dots."""
    bases = list(dict.fromkeys(name.removesuffix("/student") for name in series))
    for name, (places, values) in series.items():
        dots: dict[str, Any] = {"marker": "o", "markersize": 3} if "/" in name else {}
        style = "--" if name.endswith("/student") else "-"
        color = PALETTE[bases.index(name.removesuffix("/student")) % len(PALETTE)]
        axes.plot(places, values, color=color, linewidth=1.4, linestyle=style, label=legend(name, series), **dots)
    if label not in ("accuracy", "PSNR, dB", "SSIM"):  # once all lines are there: it fixes the top as well
        low, high = axes.get_ylim()
        axes.set_ylim(bottom=0.0 if min(float(values.min()) for _, values in series.values()) >= 0 else low, top=high)
    if label in PERCENT:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes.yaxis.get_offset_text().set_fontsize(7)
    if label != "accuracy":
        axes.yaxis.set_major_locator(MaxNLocator(3))
    if label == "accuracy" or len(series) > 1:
        above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 4}
        axes.legend(fontsize=7, frameon=False, labelcolor=INK, handlelength=1.8, **above)
