"""Results for people: one column a protocol, the models below each other, the better pooling bright."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

METRICS = {"map": "mean average precision", "miou": "mean IoU"}
"""what is shown in place of top-1 where a row has it"""
WIDE = 4
"""protocols that fit beside each other in a terminal of 100 columns; more of them become lines"""
NOTICEABLE = 0.005
"""a balanced accuracy that differs less from top-1 is not worth a number"""

Row = dict[str, Any]
Column = tuple[str, int | None, str | None, str | None]
"""protocol, k, shots, published probe"""


def table(results: Sequence[Row], title: str | None = None, majority: Row | None = None) -> Table:
    """Lay results out for comparison, in percent with 95 % intervals.

    Args:
        results: rows of `evaluate`, of any number of models.
        title: printed above.
        majority: what always the commonest class is worth (`assess`), for the caption.
    Returns:
        a rich table; for each model and protocol the better features are bold.
    """
    columns = list(dict.fromkeys(map(_column, results)))
    if len(columns) > WIDE:
        return _long(results, title, majority)
    every_layer = len({(*_place(row, False), _column(row)) for row in results}) < len(results)
    cells = {(*_place(row, every_layer), _column(row)): row for row in results}
    models = list(dict.fromkeys(row["model"] for row in results))
    drawn = Table(title=title, caption=_caption(results, majority), title_justify="left", caption_justify="left")
    drawn.add_column("model", no_wrap=True)
    drawn.add_column("features")
    for column in columns:
        drawn.add_column(_heading(column), justify="right", no_wrap=True)
    for model in models:
        mine = [row for row in results if row["model"] == model]
        places = list(dict.fromkeys(_place(row, every_layer) for row in mine))
        best = {column: max((_score(row) for row in mine if _column(row) == column), default=0) for column in columns}
        for i, place in enumerate(places):
            line = [_cell(cells.get((*place, c)), best[c], len(places) > 1, every_layer) for c in columns]
            drawn.add_row("" if i else model, " ".join(place[1:]), *line, end_section=place == places[-1])
    return drawn


def _long(results: Sequence[Row], title: str | None, majority: Row | None) -> Table:
    """A line for each result; of a model and a protocol the best features are bold."""
    drawn = Table(title=title, caption=_caption(results, majority), title_justify="left", caption_justify="left")
    for name in ("model", "protocol", "features"):
        drawn.add_column(name, no_wrap=name != "model")
    drawn.add_column("result", justify="right", no_wrap=True)
    rows = sorted(results, key=lambda row: list(dict.fromkeys(r["model"] for r in results)).index(row["model"]))
    for i, row in enumerate(rows):
        rivals = [each for each in rows if (each["model"], _column(each)) == (row["model"], _column(row))]
        text = _cell(row, max(map(_score, rivals)), len(rivals) > 1, True).replace("\n", "  ")
        first, last = i == 0 or rows[i - 1]["model"] != row["model"], rows[i + 1 : i + 2] or [{"model": None}]
        features = row["features"] if row["layer"] == "last" else f"{row['features']}, {_layer(row['layer'])}"
        heading = _heading(_column(row)).replace("\n", ", ")
        drawn.add_row(
            row["model"] if first else "", heading, features, text, end_section=last[0]["model"] != row["model"]
        )
    return drawn


def neighbors(results: Sequence[Row]) -> str:
    """Which k voted with how many labels, where that differs; else nothing."""
    found: dict[str | None, dict[int, None]] = {}
    for row in results:
        if row["protocol"] == "knn":
            found.setdefault(row.get("shots"), {})[row["k"]] = None
    if len({tuple(ks) for ks in found.values()}) < 2:
        return ""
    parts = [f"k {', '.join(map(str, ks))} on {_labels(shots)}" for shots, ks in found.items()]
    return f"k-NN: {'; '.join(parts)}"


def _labels(shots: str | None) -> str:
    """How many labels, in words."""
    return "all labels" if shots is None else f"{shots} of the labels" if "%" in shots else f"{shots} a class"


def difference_table(differences: Sequence[Row]) -> Table:
    """Lay paired differences out, in points of top-1; those whose interval leaves out 0 are bold.

    Args:
        differences: of `assess`.
    """
    about = "difference of top-1 in points, paired over test images [95 % interval]; below 0 the model is the worse one"
    drawn = Table(caption=about)
    drawn.title_justify = drawn.caption_justify = "left"
    for name in ("model", "minus", "features", "protocol"):
        drawn.add_column(name, overflow="fold")
    drawn.add_column("difference", justify="right", no_wrap=True)
    for row in differences:
        low, high = 100 * row["ci_low"], 100 * row["ci_high"]
        text = f"{100 * row['difference']:+.1f} [dim]\\[{low:+.1f}, {high:+.1f}][/dim]"
        text = f"[bold]{text}[/bold]" if low > 0 or high < 0 else text
        features = dict.fromkeys((row["features"], row["to_features"]))
        heading = _heading(_column(row)).replace("\n", ", ")
        drawn.add_row(row["model"], row["to"], " / ".join(features), heading, text)
    return drawn


def _column(row: Row) -> Column:
    return row["protocol"], row["k"], row.get("shots"), row.get("probe")


def _heading(column: Column) -> str:
    protocol, k, shots, probe = column
    name = f"k-NN, k {k}" if protocol == "knn" else f"{protocol} ({probe})" if probe else protocol
    return f"{name}\n{shots if '%' in shots else f'{shots} a class'}" if shots else name


def _place(row: Row, every_layer: bool) -> tuple[str, ...]:
    return (row["model"], row["features"], *([_layer(row["layer"])] if every_layer else []))


def _layer(layer: str | int) -> str:
    return f"block {layer}" if isinstance(layer, int) else layer


def _score(row: Row) -> float:
    return row[_metric(row) or "top1"]


def _metric(row: Row) -> str | None:
    return next((name for name in METRICS if name in row), None)


def _cell(row: Row | None, best: float, choice: bool, every_layer: bool) -> str:
    if row is None:
        return ""
    prefix = _metric(row) or "ci"
    low, high = f"{prefix}_low", f"{prefix}_high"
    text = f"{100 * _score(row):.1f} [dim]\\[{100 * row[low]:.1f}, {100 * row[high]:.1f}][/dim]"
    below = []
    if row.get("deviation") is not None:
        below.append(f"+- {100 * row['deviation']:.1f} of {len(row['seeds'])} draws")
    if _metric(row):
        below.append(f"top-1 {100 * row['top1']:.1f}" if row["balanced"] is None else f"pixels {100 * row['top1']:.1f}")
    elif abs(row["balanced"] - row["top1"]) > NOTICEABLE:
        below.append(f"balanced {100 * row['balanced']:.1f}")
    if row["layer"] != "last" and not every_layer:
        below.append(_layer(row["layer"]))
    text += "".join(f"\n[dim]{line}[/dim]" for line in below)
    return f"[bold]{text}[/bold]" if choice and _score(row) == best else text


def _caption(results: Sequence[Row], majority: Row | None) -> str | None:
    if not results:
        return None
    sizes = " / ".join(dict.fromkeys(f"{row['n_train']:,} to learn from, {row['n_test']:,} to test" for row in results))
    always = f"; always guessing {majority['class']}: {100 * majority['top1']:.1f} %" if majority else ""
    metric = METRICS.get(_metric(results[0]) or "", "top-1")
    votes = f"; {text}" if (text := neighbors(results)) else ""
    return f"{metric} in percent, [95 % interval over test images]; {sizes} images{always}{votes}"
