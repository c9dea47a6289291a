"""Results for people: one column a protocol, the models below each other, the better pooling bright."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

NOTICEABLE = 0.005
"""a balanced accuracy that differs less from top-1 is not worth a number"""


def table(results: Sequence[dict[str, Any]], title: str | None = None) -> Table:
    """Lay results out for comparison, in percent with 95 % intervals.

    Args:
        results: rows of `evaluate`, of any number of models.
        title: printed above.
    Returns:
        a rich table; for each model and protocol the better pooling is bold.
    """
    columns = list(dict.fromkeys((row["protocol"], row["k"]) for row in results))
    cells = {(row["model"], row["features"], row["protocol"], row["k"]): row for row in results}
    models = list(dict.fromkeys(row["model"] for row in results))
    sizes = " / ".join(dict.fromkeys(f"{row['n_train']:,} to learn from, {row['n_test']:,} to test" for row in results))
    caption = f"top-1 in percent, [95 % interval over test images]; {sizes} images" if results else None
    drawn = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    drawn.add_column("model", no_wrap=True)
    drawn.add_column("features")
    for protocol, k in columns:
        drawn.add_column(f"k-NN, k {k}" if protocol == "knn" else protocol, justify="right", no_wrap=True)
    for model in models:
        pools = list(dict.fromkeys(row["features"] for row in results if row["model"] == model))
        best = {column: max(_top1(cells.get((model, pool, *column))) for pool in pools) for column in columns}
        for i, pool in enumerate(pools):
            line = [_cell(cells.get((model, pool, *column)), best[column], len(pools) > 1) for column in columns]
            drawn.add_row("" if i else model, pool, *line, end_section=pool == pools[-1])
    return drawn


def _top1(row: dict[str, Any] | None) -> float:
    return -1.0 if row is None else row["top1"]


def _cell(row: dict[str, Any] | None, best: float, choice: bool) -> str:
    if row is None:
        return ""
    text = f"{100 * row['top1']:.1f} [dim]\\[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}][/dim]"
    if abs(row["balanced"] - row["top1"]) > NOTICEABLE:
        text += f"\n[dim]balanced {100 * row['balanced']:.1f}[/dim]"
    return f"[bold]{text}[/bold]" if choice and row["top1"] == best else text
