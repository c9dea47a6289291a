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

PLAIN = {"step", "epoch", "images", "loss", "grad_norm", "lr", "img/s", "data_wait", "outside_step", "memory_gb"}
"""what every method logs; the rest is a method's own health, drawn below the loss"""
TOGETHER = (
    ("hidden tokens right", ("mlm_acc", "constant_acc")),
    ("bound, nats/dim", ("health/elbo_hard", "health/elbo_relaxed", "elbo")),
    ("codes in use", ("health/usage", "usage")),
    ("codes in effect", ("health/token_perplexity", "health/perplexity", "perplexity")),
    ("nats a cell", ("health/kl", "health/cell_entropy", "kl", "cell_entropy")),
)
"""numbers that are read side by side: `health/` on held-out images, bare ones on the batch"""
WORDS = {
    "mlm_acc": "predicted",
    "constant_acc": "most frequent token everywhere",
    "elbo_hard": "argmax tokens",
    "elbo_relaxed": "relaxed",
    "elbo": "relaxed",
    "kl": "KL",
    "token_perplexity": "perplexity of argmax tokens",
    "perplexity": "of the mean posterior",
}
"""how a legend calls them"""

ALONE = {"health/psnr": "PSNR, dB", "health/ssim": "SSIM", "health/temperature": "last temperature"}
"""what is drawn by itself, by another name"""


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
    evals = sorted({name for line in lines for name in line if name.startswith("eval/")})
    panels: list[tuple[str, list[str]]] = [("loss", ["loss"]), ("accuracy", evals), ("learning rate", ["lr"])]
    logged = sorted({name for line in lines for name in line} - PLAIN - set(evals))
    panels += [(label, list(names)) for label, names in TOGETHER if set(names) & set(logged)]
    alone = [name for name in logged if not any(name in names for _, names in TOGETHER)]
    panels += [(ALONE.get(name, name), [name]) for name in sorted(alone, key=lambda name: name not in ALONE)]
    axis = "images" if any("images" in line for line in lines) else "step"
    series = {name: _series(lines, name, axis) for _, names in panels for name in names}
    panels = [(label, [name for name in names if len(series[name][0])]) for label, names in panels]
    panels = [(label, names) for label, names in panels if names]
    if not panels:
        raise ValueError("no curve to draw: the log has no loss, lr or eval/ yet; train some steps first")
    heights = [2.2 if label in ("loss", "accuracy") else 1.5 if len(names) > 1 else 1.2 for label, names in panels]
    figure = new_figure(6.4, sum(heights) + 0.5 + (0.3 if title else 0))
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.06)
    if title:
        figure.suptitle(title, x=0.015, ha="left", fontsize=10, color=INK)
    stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (label, names) in zip(stack, panels, strict=True):
        tidy(axes, ylabel=label)
        for name, color in zip(names, PALETTE * len(names), strict=False):
            _line(axes, name, color, *series[name], among=len(names))
    stack[-1].set_xlabel("images seen" if axis == "images" else "optimizer steps", fontsize=8, color=INK)
    stack[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    stack[-1].set_xlim(left=0)
    figure.align_ylabels(list(stack))
    return save(figure, path)


def _series(lines: Sequence[dict[str, Any]], name: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line[axis], line[name]) for line in lines if line.get(name) is not None and axis in line]
    places, values = np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T
    return places, values


def _line(axes: Axes, name: str, color: str, places: np.ndarray, values: np.ndarray, among: int) -> None:
    above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 4}
    legend = {"fontsize": 7, "frameon": False, "labelcolor": INK, "handlelength": 1.4, **above}
    if name.startswith("eval/"):
        label = name.removeprefix("eval/").replace("/", ", ").replace("knn", "k-NN")
        axes.plot(places, values, color=color, linewidth=1.4, marker="o", markersize=3, label=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.legend(**legend)
    elif name == "loss":
        axes.plot(places, values, color=FAINT, linewidth=0.5, alpha=0.5)
        axes.plot(places, smooth(values, places), color=color, linewidth=1.6)
        settled = values[len(values) // 50 :]  # the first steps of a run would flatten all that follows
        low, high = settled.min(), settled.max()
        axes.set_ylim(low - 0.05 * (high - low + 1e-9), high + 0.05 * (high - low + 1e-9))
    elif among > 1:
        held_out = name.startswith("health/")
        bare = name.removeprefix("health/")
        label = WORDS.get(bare, bare.replace("_", " ")) + ("" if bare in ("mlm_acc", "constant_acc") else _of(held_out))
        how: dict[str, Any] = {"linewidth": 1.4, "marker": "o", "markersize": 3} if held_out else {"linewidth": 0.9}
        axes.plot(places, values, color=color, label=label, **how)
        if axes.get_ylabel() in ("hidden tokens right", "codes in use"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.legend(**(legend | {"fontsize": 6.5}))
    else:
        axes.plot(
            places, values, color=color, linewidth=1.4, **({"marker": "o", "markersize": 3} if "/" in name else {})
        )
        if values.min() >= 0 and "/" not in name:
            axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes.yaxis.get_offset_text().set_fontsize(7)
        axes.yaxis.set_major_locator(MaxNLocator(3))


def _of(held_out: bool) -> str:
    return ", held out" if held_out else ", batch"
