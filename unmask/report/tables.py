"""The page's tables: results, paired differences, costs."""

from typing import Any

from ..evaluate.tables import NOTICEABLE, neighbors
from .comparison import Board, Comparison, Row, board_of

WIDE = 90
"""px of the longest bar of training time"""


def results(about: Comparison) -> dict[str, Any] | None:
    """All rows, grouped by model, a column a protocol; the best of each column is marked.

    Returns:
        columns, groups of lines of cells, and a caption; None where nothing was evaluated.
    """
    boards = about.boards
    if not boards:
        return None
    top = {board: max(row["top1"] for row in about.rows if board_of(row) == board) for board in boards}
    groups, others = [], 0
    for model in about.models():
        look = about.look(model, others)
        others += not look.kind
        mine = [row for row in about.rows if row["model"] == model]
        lines = []
        for features, layer in dict.fromkeys((row["features"], row["layer"]) for row in mine):
            here = {board_of(row): row for row in mine if (row["features"], row["layer"]) == (features, layer)}
            shown = (
                features if layer == "last" else f"{features}, {f'block {layer}' if isinstance(layer, int) else layer}"
            )
            cells = [_cell(here.get(board), top[board]) for board in boards]
            lines.append({"features": shown, "cells": cells})
        groups.append({"label": look.label, "color": look.color, "lines": lines})
    learned, judged = (" or ".join(f"{n:,}" for n in dict.fromkeys(row[key] for row in about.rows))
                       for key in ("n_train", "n_test"))  # fmt: skip
    caption = (
        f"Top-1 accuracy in percent with 95 % intervals over test images: {learned} to learn from, {judged} to "
        "judge. Bold: the highest of its column. cls: class token; mean: average of the patches. An interval over "
        "images says nothing about another training run."
    )
    if any(each["kind"] == "supervised" for each in about.methods):
        caption += " supervised has seen all labels, also in the columns of few labels."
    if any(row.get("deviation") is not None for row in about.rows):
        draws = max(len(row.get("seeds") or ()) for row in about.rows)
        caption += f" With few labels: the mean over {draws} draws of them."
    if votes := neighbors(about.rows):
        caption += f" {votes}."
    return {"columns": [board.title for board in boards], "groups": groups, "caption": caption}


def differences(about: Comparison) -> list[dict[str, Any]]:
    """Paired differences in points; those whose interval leaves out 0 are marked as clear."""
    lines = []
    for row in about.said.get("differences", []):
        low, high = 100 * row["ci_low"], 100 * row["ci_high"]
        lines.append({
            "model": about.label(row["model"]), "to": about.label(row["to"]), "board": board_of(row).title,
            "features": " / ".join(dict.fromkeys((row["features"], row["to_features"]))),
            "value": f"{100 * row['difference']:+.1f}", "low": f"{low:+.1f}", "high": f"{high:+.1f}",
            "clear": low > 0 or high < 0,
        })  # fmt: skip
    return lines


def without_labels(about: Comparison) -> dict[str, Any] | None:
    """Columns and lines of what was measured without labels; None where there is nothing of it."""
    rows = about.said.get("labelfree") or []
    if not rows:
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        [about.label(row["model"])] + [f"{v:.4g}" if isinstance(v := row.get(c), float) else v for c in columns[1:]]
        for row in rows
    ]
    return {"columns": columns, "lines": lines}


def costs(about: Comparison) -> dict[str, Any]:
    """What each method took to train, with its tokenizer's time where it has one, and what to know about it."""
    lines, notes = [], []
    whole = {
        each["name"]: each["seconds"] + ((each.get("tokenizer") or {}).get("seconds") or 0) for each in about.methods
    }
    longest = max(whole.values(), default=0) or 1
    for each in about.methods:
        stage = (each.get("tokenizer") or {}).get("seconds") or 0
        gflop, rate = each.get("gflop"), each.get("images_per_second")
        lines.append({
            "name": each["name"], "color": about.look(each["name"]).color,
            "bar": round(WIDE * each["seconds"] / longest), "more": round(WIDE * stage / longest),
            "time": duration(each["seconds"]) + (f" + {duration(stage)}" if stage else ""),
            "images": f"{each['images_seen']:,}", "epochs": f"{each['epochs']:.1f}", "steps": f"{each['step']:,}",
            "rate": "" if rate is None else f"{rate:,.0f}", "gflop": "" if gflop is None else amount(gflop),
            "parameters": millions(each["parameters"]), "network": network(each["vit"]),
        })  # fmt: skip
        if stage:
            seen = each["tokenizer"].get("images_seen")
            notes.append(
                f"{each['name']}: the time after the + is its tokenizer's"
                + (f", which saw {seen:,} images." if seen else ".")
            )
        notes += [f"{each['name']}: {note}" for note in each.get("notes") or []]
    different = len({network(each["vit"]) for each in about.methods}) > 1
    if different:
        notes.insert(0, "The networks are not of one size: differences between methods are in part those of size.")
    return {"lines": lines, "gflop": any(each["gflop"] for each in lines), "notes": notes}


def network(vit: dict[str, Any]) -> str:
    """A ViT's sizes in words."""
    patch, size = (
        " x ".join(map(str, side)) if isinstance(side, list) else side for side in (vit["patch"], vit["image_size"])
    )
    return f"{vit['depth']} blocks of {vit['width']}, patch {patch}, {size} px"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def amount(value: float) -> str:
    """A count of any size for people: no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def millions(count: float) -> str:
    """A number of parameters for people."""
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,.0f}"


def best_rows(about: Comparison, board: Board) -> list[tuple[str, Row]]:
    """Each model's best row by a protocol."""
    found = [(model, about.best(model, board)) for model in about.models()]
    return [(model, row) for model, row in found if row is not None]


def _cell(row: Row | None, top: float) -> dict[str, Any] | None:
    if row is None:
        return None
    value, low, high = (f"{100 * row[key]:.1f}" for key in ("top1", "ci_low", "ci_high"))
    balanced = row.get("balanced")
    shown = f"{100 * balanced:.1f}" if balanced is not None and abs(balanced - row["top1"]) > NOTICEABLE else ""
    return {
        "value": value, "low": low, "high": high, "best": row["top1"] == top,
        "balanced": shown,
    }  # fmt: skip
