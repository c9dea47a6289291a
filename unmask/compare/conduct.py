"""A comparison from its first step to its page: what is done in which order, and compare.json."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__, parallel
from ..checkpoint import write_atomically
from ..data.sources import open_source
from ..evaluate.features import Report
from ..evaluate.labels import Note
from ..run import environment
from ..stages import halved
from .answer import sentence
from .entries import Entry, check_images, curve, described, open_entries
from .images import Images, part
from .looks import draw_all, study_all
from .pieces import Pieces, stamp
from .scores import judge, judge_without_labels
from .settings import Settings
from .training import train_all

FORMAT = 1
"""of compare.json"""
FILE = "compare.json"


class Comparison(NamedTuple):
    """What was made."""

    dir: Path
    report: Path
    """the page"""
    content: dict[str, Any]
    """of compare.json"""


def carry_out(data: str, settings: Settings, note: Note, progress: Callable[[str], Report] | None = None) -> Comparison:
    """Make every piece that is not there yet, in order, and the page of them."""
    source = open_source(data)
    if settings.methods:
        entries = open_entries([str(run) for run in train_all(data, source, settings, note)], settings.methods)
    else:
        entries = open_entries(settings.runs)
    said = [line for entry in entries for line in entry.notes] + check_images(entries, data, source)
    images = part(source, settings.test, entries)
    if not images.labelled:
        said.append("no labels: models are judged by what needs none, and nothing says which is best")
    for line in said:
        note(line)
    settings.out.mkdir(parents=True, exist_ok=True)
    device, pieces = parallel.start(settings.device or "auto").device, Pieces(settings.out)
    asked = {
        "models": [[e.name, str(e.run.path), e.step, stamp(e.run, e.step)] for e in entries],
        "data": [data, len(images.train), settings.test, len(images.test), images.content],
        "how": [settings.protocols, settings.layers, settings.seed],
    }
    if images.labelled:
        pieces.make("evaluate.json", asked, lambda f: judge(entries, images, settings, device, note, progress, f))
    else:
        asked["how"].append(settings.count)
        pieces.make("evaluate.json", asked, lambda f: judge_without_labels(entries, images, settings, device, f))
    drawn, undrawn = draw_all(entries, images, settings, pieces, note)
    analyses, left = study_all(entries, images, settings, device, pieces, note)
    content = written(data, settings, entries, images) | {"analyses": analyses, "pictures": drawn}
    content["notes"] = [*said, *left, *undrawn, *content["notes"]]
    write_atomically(settings.out / FILE, json.dumps(content, indent=1) + "\n")
    from ..report import write  # pyright: ignore[reportMissingImports]

    return Comparison(settings.out, write(settings.out), content)


def written(data: str, settings: Settings, entries: Sequence[Entry], images: Images) -> dict[str, Any]:
    """The content of compare.json, without analyses and pictures."""
    found = json.loads((settings.out / "evaluate.json").read_text(encoding="utf-8"))
    answer, rows, pairs = (found.pop(name) for name in ("answer", "results", "differences"))
    methods = [described(entry, settings.out, len(images.train)) for entry in entries]
    budgets = {entry.run.config.budget for entry in entries}
    budget = settings.budget or (budgets.pop() if len(budgets) == 1 else None)
    notes = []
    if found.get("overlap"):
        notes.append(f"{found['overlap']} of {len(images.test)} test images are training images too, byte for byte")
    for method in methods if settings.budget else []:
        if method["tokenizer"]:
            half = halved(settings.budget or "")
            method["notes"].append(f"the budget is for both stages: {half} for the tokenizer, {half} for the ViT")
    if settings.runs and budget is None:
        notes.append("the runs were not trained under one budget: look at what each has cost")
    return {
        "format": FORMAT,
        "version": __version__,
        "command": settings.command(data),
        "data": data,
        "test": settings.test,
        "images": len(images.train),
        "test_images": len(images.test) if images.apart else 0,
        "classes": images.classes,
        "budget": budget,
        "seed": settings.seed,
        "environment": environment(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "methods": methods,
        "rows": rows,
        "differences": pairs,
        "labelfree": found.pop("labelfree", []),
        "facts": found,
        "curves": {entry.name: curve(entry) for entry in entries},
        "answer": answer | {"sentence": sentence(answer, methods)},
        "notes": notes,
    }
