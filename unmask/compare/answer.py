"""The answer first: which method to use on these images, by how much, and what it costs."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..evaluate.paired import between
from ..evaluate.rows import Answer
from .settings import FEW

COLUMNS: dict[str, tuple[str, str | None]] = {
    "linear": ("linear", None),
    "knn": ("knn", None),
    "few": ("linear", FEW),
    "attentive": ("attentive", None),
    "finetune": ("finetune", None),
}
"""columns of results by which models are ranked: protocol and labels; the first that there is decides"""
LEVEL = 1e-9
"""a smaller difference is none: fewer than a billion images are asked"""
SAID = {
    "linear": "a linear probe", "knn": "k-NN", "few": f"a linear probe on {FEW} of the labels",
    "attentive": "an attentive probe", "finetune": "fine-tuning",
}  # fmt: skip
"""what columns are called in a sentence"""


def winners(answers: Sequence[Answer], names: Sequence[str], *, seed: int) -> dict[str, Any]:
    """The best method in each column, and how it compares with every other model, image by image.

    A model stands for its better features. They are chosen on the test images: a choice of two.

    Args:
        answers: of all models.
        names: of the methods; other models are references.
        seed: of the bootstrap.
    Returns:
        `best`, by column, with the names of the methods that `ties` has just as many images right; `beats`, rows of
        `paired.differences` with their column, best ones first.
    """
    best, beats = {}, []
    for column, (protocol, shots) in COLUMNS.items():
        asked = [a for a in answers if a.row["protocol"] == protocol and a.row.get("shots") == shots]
        stand: dict[str, Answer] = {}
        for answer in sorted(asked, key=lambda a: -a.row["top1"]):
            stand.setdefault(answer.row["model"], answer)
        first = next((answer for name, answer in stand.items() if name in names), None)
        if first is None:
            continue
        kept = ("model", "features", "layer", "k", "top1", "ci_low", "ci_high", "n_test")
        against = [
            {"column": column, **between(first, other, seed=seed)} for other in stand.values() if other is not first
        ]
        best[column] = {name: first.row[name] for name in kept} | {"ties": [row["to"] for row in _tied(against, names)]}
        beats += against
    return {"best": best, "beats": [{**row, "text": _beaten(row)} for row in beats]}


def sentence(found: dict[str, Any], methods: Sequence[dict[str, Any]]) -> str:
    """Which method to use on these images, in words.

    Args:
        found: of `winners`.
        methods: entries of compare.json: name, kind, seconds, tokenizer.
    """
    names = [method["name"] for method in methods]
    column = next((name for name in COLUMNS if name in found["best"]), None)
    if column is None:
        return (
            "No labels, no answer: which method is best cannot be told from measures that need none, which mislead "
            "across methods. Label some images, a few of each class, and compare again."
        )
    top = found["best"][column]
    rows = [row for row in found["beats"] if row["column"] == column]
    tied = _tied(rows, names)
    rival = next((row for row in rows if row["to"] in names and row not in tied), None)
    level = [row["to"] for row in rows if row["to"] in names and (row in tied or row["ci_low"] <= 0)]
    floors = [row for row in rows if row["to"] not in names]
    lost = [row for row in floors if row["ci_low"] <= 0]
    name, right = top["model"], f"of {top['n_test']:,} test images right with {SAID[column]}"
    told = f"{_percent(top)} {right} on its {top['features']} features, after {_minutes(name, methods)} of training"
    has, comes = f"{name} has {told}", f"{name} comes first: {told}"
    if tied:
        leaders = {name: top["features"]} | {row["to"]: row["to_features"] for row in tied}
        each = [f"{n} on its {of} features after {_minutes(n, methods)} of training" for n, of in leaders.items()]
        has = comes = f"{_and(leaders)} tie at {100 * top['top1']:.1f} % {right}, {_and(each)}"
    if lost:
        text = f"No method is surely better than {_names(lost)} here; {comes}."
    elif level:
        unsure = ", not told apart" if len(level) > len(tied) else ""
        text = f"On these images use {' or '.join([name, *level])}{unsure}: {has}."
    else:
        text = f"On these images use {name}: {told}."
    parts = [_against(rival, "the next" if tied else "the second")] if rival is not None else []
    parts += [_over(row) for row in floors if row["to"] == "pixels"]
    own = [row for row in floors if row["to"].startswith("untrained:")]
    parts += [_over(min(own, key=lambda row: row["difference"]))] if own else []
    if parts:
        text += f" That is {'; '.join(parts)}."
    others: list[str] = []
    for other, row in found["best"].items():
        firsts = [row["model"], *(each["to"] for each in _tied(found["beats"], names, other))]
        if name not in firsts:
            others.append(f"by {SAID[other]}, {_and(firsts)}{', which tie' if firsts[1:] else ''}")
    if others:
        text += f" {'First come' if tied else 'Others come first'} {' and '.join(others)}."
    seen = [method["name"] for method in methods if method["kind"] == "supervised" and method["name"] in text]
    return text + "".join(f" {name} has seen all the labels." for name in seen)


def _tied(rows: Sequence[dict[str, Any]], names: Sequence[str], column: str | None = None) -> list[dict[str, Any]]:
    """Of the comparisons of a column's best method, those with methods that have just as many images right."""
    mine = [row for row in rows if column in (None, row["column"])]
    return [row for row in mine if row["to"] in names and abs(row["difference"]) < LEVEL]


def _beaten(row: dict[str, Any]) -> str:
    """One paired comparison in words."""
    clear = row["ci_low"] > 0 or row["ci_high"] < 0
    if abs(row["difference"]) < LEVEL:
        return f"{row['model']} ties with {row['to']} {_interval(row)} by {SAID[row['column']]}"
    verb = "beats" if row["ci_low"] > 0 else "loses to" if row["ci_high"] < 0 else "is not told apart from"
    size = f" by {abs(100 * row['difference']):.1f} points" if clear else f", {100 * row['difference']:+.1f} points"
    return f"{row['model']} {verb} {row['to']}{size} {_interval(row)} by {SAID[row['column']]}"


def _against(row: dict[str, Any], place: str) -> str:
    told = "" if row["ci_low"] > 0 else " (the two are not told apart)"
    return f"{_points(row)} over {row['to']}, {place}{told}"


def _over(row: dict[str, Any]) -> str:
    name = row["to"]
    return f"{_points(row)} over {'raw pixels' if name == 'pixels' else f'the network of {name[10:]} untrained'}"


def _points(row: dict[str, Any]) -> str:
    return f"{100 * row['difference']:+.1f} points {_interval(row)}"


def _interval(row: dict[str, Any]) -> str:
    return f"[{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}]"


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['top1']:.1f} % [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"


def _names(rows: Sequence[dict[str, Any]]) -> str:
    return _and(["raw pixels" if row["to"] == "pixels" else f"an untrained {row['to'][10:]}" for row in rows])


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return " and ".join([*([", ".join(most)] if most else []), last])


def _minutes(name: str, methods: Sequence[dict[str, Any]]) -> str:
    method = next(each for each in methods if each["name"] == name)
    tokenizer = (method["tokenizer"] or {}).get("seconds", 0.0)
    total = method["seconds"] + tokenizer
    text = (
        f"{total / 60:.0f} minutes"
        if total >= 600
        else f"{total / 60:.1f} minutes"
        if total >= 60
        else f"{total:.0f} s"
    )
    return f"{text}, {tokenizer / 60:.0f} of them for the tokenizer," if tokenizer >= 60 else text
