"""The page's sections: scores, curves over time, pictures, the two questions. One without data is left out."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..show.curves import smooth
from . import readings, teacher_readings, words
from .charts import Dot, Panel, Series, curves, dots
from .comparison import TOKENIZER, Comparison
from .panels import PANELS
from .readings import Reading
from .tables import best_rows

POINTS = 300
"""of a drawn curve at most"""
READINGS = readings.READINGS | teacher_readings.READINGS

Part = dict[str, Any]


def scores(about: Comparison) -> Part | None:
    """The first chart: every model by every protocol, with the level of guessing."""
    boards = about.boards
    if not boards:
        return None
    first = next((board for board in boards if board.protocol == "linear"), boards[0])
    rank = {model: row["top1"] for model, row in best_rows(about, first)}
    classes, majority, panels = about.said.get("classes"), (about.said.get("facts") or {}).get("majority"), []
    order = sorted(about.models(), key=lambda model: -rank.get(model, 0))
    grays = {model: i for i, model in enumerate(model for model in order if not about.look(model).kind)}
    for board in boards:
        rows = []
        for model in order:
            row, look = about.best(model, board), about.look(model, grays.get(model, 0))
            if row is not None:
                rows.append(Dot(look.label, look.color, row["top1"], row["ci_low"], row["ci_high"], look.symbol))
        level = (majority["top1"], "guessing") if majority else (1 / classes, "guessing") if classes else None
        panels.append(dots(board.title, rows, percent=True, level=level))
    caption = (
        "Top-1 accuracy in percent; bars are 95 % intervals over test images. Each model with its better features "
        "(the table has all). Untrained networks and raw pixels, gray, are what training has to beat."
    )
    return chart(panels, caption)


def over_time(about: Comparison) -> list[Part]:
    """Accuracy against time and images, and the loss of each method on a chart of its own."""
    logs = {name: lines for name, lines in (about.said.get("curves") or {}).items() if lines}
    found, once, parts = [], [], []
    for protocol, title in (("knn", "k-NN"), ("linear", "linear probe")):
        lines = []
        for name, log in logs.items():
            key = evaluated(log, protocol)
            if key is not None:
                lines.append((name, [line for line in log if line.get(key) is not None], key))
        if lines and max(len(judged) for _, judged, _ in lines) == 1:  # points alone, on axes of no length
            once.append(title)
            continue
        for axis, unit in (("seconds", "minutes of training"), ("images", "images seen")):
            scale = 60 if axis == "seconds" else 1
            series = [
                Series(look.label, look.color, [line[axis] / scale for line in log], [line[key] for line in log],
                       symbol=look.symbol)
                for name, log, key in lines if all(line.get(axis) is not None for line in log)
                for look in [about.look(name)]
            ]  # fmt: skip
            if series:
                found.append(curves(f"{title}, by {unit}", series, x=unit, percent=True))
    missing = (
        f"No curve by {' and '.join(once)}: each run was evaluated once while it trained. The table has the results; "
        "--eval-every says how often a run is evaluated."
    )
    if found:
        caption = (
            "As logged while training, with smaller samples than the table's: read the order of the curves, not their "
            "last digit. Each method with its better features; supervised by its own classifier, beside the linear "
            "probes."
        )
        parts.append({"title": "Accuracy", **chart(found, f"{caption} {missing}" if once else caption)})
    elif once:
        parts.append({"title": "Accuracy", "panels": [], "caption": missing})
    panels = []
    for name, log in logs.items():
        rows = [line for line in log if line.get("loss") is not None and line.get("images") is not None]
        if len(rows) > 1:
            panels.append(_loss(about, name, rows))
    if panels:
        caption = "Losses of different methods do not compare: read each for whether it still falls. Faint: as logged."
        parts.append({"title": "Loss", **chart(panels, caption)})
    return parts


def evaluated(log: Sequence[Part], protocol: str) -> str | None:
    """The logged number that stands for a method: of its features those that ended best; not the student's."""
    keys = {key for line in log for key in line if key.startswith(f"eval/{protocol}/") and not key.endswith("/student")}
    last = {key: next((line[key] for line in reversed(log) if line.get(key) is not None), None) for key in keys}
    scored = {key: value for key, value in last.items() if value is not None}
    if scored:
        return max(sorted(scored), key=lambda key: scored[key])
    return "eval/top1" if protocol == "linear" and any(line.get("eval/top1") is not None for line in log) else None


def sights(about: Comparison) -> list[Part]:
    """Pictures of what the models see, by kind, with a sentence on what to look at."""
    found = []
    for what, (title, caption) in words.SIGHTS.items():
        if drawn := pictures(about, what):
            found.append({"title": title, "caption": caption, "pictures": drawn})
    return found


def pictures(about: Comparison, what: str) -> list[Part]:
    """Pictures of one kind, in the order of the methods."""
    found = []
    for each in sorted(about.said.get("pictures", []), key=lambda one: about.place(one["method"])):
        if each["what"] == what:
            stage = each["method"] + TOKENIZER  # its pictures are listed with the method's own
            name = stage if f"{stage}-" in each["file"] else each["method"]
            look, (data, (width, height)) = about.look(name), inline(about, each["file"])
            found.append({"label": look.label, "color": look.color, "data": data, "width": width, "height": height})
    return found


def question(about: Comparison, names: Sequence[str], lead: str) -> Part | None:
    """The analyses of one question: readings, charts, and how many carry the claim."""
    studies, tally = [], dict.fromkeys(words.VERDICTS, 0)
    for what in names:
        for i, analysis in enumerate(each for each in about.said.get("analyses", []) if each["what"] == what):
            study = _study(about, what, analysis)
            study["id"] = what if i == 0 else f"{what}-{i + 1}"
            if sum(each["what"] == what for each in about.said["analyses"]) > 1:
                study["title"] += f" ({', '.join(map(about.label, analysis['models']))})"
            if study["verdict"]:
                tally[study["verdict"]] += 1
            studies.append(study)
    if not studies:
        return None
    total, ends = sum(tally.values()), {"supports": "support it", "against": "are against it", "open": "do not decide"}
    shown = [(verdict, f"{n} of {total} {ends[verdict]}") for verdict, n in tally.items() if n]
    notes = []
    sides = {each["name"]: _grid(each["vit"]) for each in about.methods}
    if lead == words.CLAIM_1 and len(set(sides.values())) > 1:
        notes.append(words.GRIDS.format(grids=", ".join(f"{name} {grid}" for name, grid in sides.items())))
    return {"lead": lead, "tally": shown, "notes": notes, "studies": studies}


def chart(panels: Sequence[Panel], caption: str = "") -> Part:
    """What the template needs of charts side by side: one legend where the longest names all, else one each."""
    longest = max((panel.key for panel in panels), key=len)
    shared = all(set(panel.key) <= set(longest) for panel in panels)
    drawn = [
        {"title": panel.title, "height": panel.figure.to_dict()["layout"]["height"], "json": panel.figure.to_json(),
         "key": () if shared else panel.key}
        for panel in panels
    ]  # fmt: skip
    return {"panels": drawn, "key": longest if shared else (), "caption": caption}


def inline(about: Comparison, file: str) -> tuple[str, tuple[int, int]]:
    """A picture as a data URI, and its size: as WebP where that is smaller."""
    content = (about.folder / file).read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        kind, size, packed = (picture.format or "png").lower(), picture.size, io.BytesIO()
        picture.convert("RGB").save(packed, "WEBP", quality=88, method=4)
    if len(packed.getvalue()) < len(content):
        kind, content = "webp", packed.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", size


def _study(about: Comparison, what: str, analysis: Part) -> Part:
    title, how = words.ANALYSES[what]
    said = about.numbers(analysis)
    reading: Reading = READINGS[what](said["found"], about)
    panels = PANELS[what](said["found"], about)
    seen = {
        each["images"]
        for each in [said["found"], *said["found"].values()]
        if isinstance(each, dict) and "images" in each
    }
    more = f" {max(seen):,} images." if seen else ""
    study = {"title": title, "how": how, "reading": reading.text, "verdict": reading.verdict, "chart": None,
             "verdict_text": words.VERDICTS.get(reading.verdict, ""), "picture": None}  # fmt: skip
    if panels:
        study["chart"] = chart(panels, f"{how}{more} Analysis: {what}.")
    if analysis.get("figure") and (not panels or what == "collapse"):  # whose figure is of the whole training
        study["picture"] = inline(about, analysis["figure"])[0]
    return study


def _loss(about: Comparison, name: str, rows: Sequence[Part]) -> Panel:
    look = about.look(name)
    x, y = (np.array([row[key] for row in rows], float) for key in ("images", "loss"))
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    trend = smooth(y, x)
    kept = np.unique(np.linspace(0, len(x) - 1, min(POINTS, len(x))).astype(int))
    raw = Series("", "#c9ced6", x[kept].tolist(), _short(y[kept]), width=1)
    line = Series("", look.color, x[kept].tolist(), _short(trend[kept]), width=2.4)
    settled = y[len(y) // 50 :]  # the first steps would flatten all that follows
    low, high = float(settled.min()), float(settled.max())
    room = 0.05 * (high - low or 1.0)
    return curves(look.label, [raw, line], x="images seen", height=220, y_range=(low - room, high + room))


def _short(values: np.ndarray) -> list[float]:
    return json.loads(json.dumps([float(f"{value:.5g}") for value in values]))


def _grid(vit: Part) -> str:
    sides = [v if isinstance(v, list) else [v, v] for v in (vit["image_size"], vit["patch"])]
    return " x ".join(str(size // patch) for size, patch in zip(*sides, strict=True))
