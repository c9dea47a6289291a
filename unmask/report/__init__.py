"""One page from a comparison: `write(folder)` turns what `unmask compare` left into a self-contained report.html."""

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["write"]

HOME = Path(__file__).parent
FEW = 4
"""comparisons that are shown beside the answer; more are folded away below the table"""
SHUT = {"environment": "Environment", "facts": "Data and evaluation"}
"""parts of compare.json that are shown as they are"""


def write(folder: Path) -> Path:
    """Write the report of a comparison.

    Args:
        folder: what `unmask compare` wrote: compare.json and the files that it names.
    Returns:
        `folder/report.html`, which opens without a network: pictures, styles and plotly.js are inside (4.5 MB).
    Raises:
        ImportError: the extra `report` is not installed.
        FileNotFoundError, ValueError: the folder holds no comparison that this version reads.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(f"the report needs plotly and jinja2 ({error}): pip install 'unmask[report]'") from None
    from ..checkpoint import write_atomically
    from .comparison import Comparison

    about = Comparison.read(folder)
    page = Environment(
        loader=FileSystemLoader(HOME), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters["script"] = lambda text: Markup(text.replace("<", "\\u003c"))  # inside a script no tag may end it
    whole = page.get_template("page.html.jinja").render(
        content(about), style=Markup((HOME / "style.css").read_text()), plotly=Markup(get_plotlyjs())
    )
    file = about.folder / "report.html"
    write_atomically(file, whole)
    return file


def content(about: Any) -> dict[str, Any]:
    """All that the template shows of a `Comparison`."""
    from . import sections, tables, words

    said = about.said
    parts = {
        "scores": sections.scores(about),
        "table": tables.results(about),
        "differences": tables.differences(about),
        "costs": tables.costs(about),
        "curves": sections.over_time(about),
        "logs": sections.pictures(about, "curves"),
        "sights": sections.sights(about),
        "first": sections.question(about, words.FIRST, words.CLAIM_1),
        "second": sections.question(about, words.SECOND, words.CLAIM_2),
    }
    contents = [
        ("table", "All results", parts["table"]), ("cost", "What it costs", True),
        ("curves", "Over time", parts["curves"]), ("pictures", "What the models see", parts["sights"]),
        ("reconstruction", "Why fine detail and short range?", parts["first"]),
        ("teacher", "Why an EMA teacher?", parts["second"]), ("settings", "How to repeat it", True),
    ]  # fmt: skip
    return parts | {
        "data": said["data"],
        "heading": f"Which pre-training for {said['data']}?",
        "answer": answer(said),
        "labelfree": tables.without_labels(about),
        "facts": facts(about),
        "overlap": overlap(about),
        "contents": [(place, word) for place, word, there in contents if there],
        "command": said["command"],
        "notes": said.get("notes") or [],
        "settings": settings(about),
        "version": said["version"],
        "created": str(said["created"])[:10],
        "any_chart": bool(parts["scores"] or parts["curves"] or parts["first"] or parts["second"]),
    }


def answer(said: dict[str, Any]) -> dict[str, Any]:
    """The answer: its first sentence, which is shown large, the rest of it, and how the best compare with others."""
    told = said.get("answer") or {}
    first, *rest = re.split(r"(?<=\.) (?=[A-Z])", told.get("sentence", ""), maxsplit=1)
    beats = [line["text"] if isinstance(line, dict) else line for line in told.get("beats", [])]
    return {"sentence": first, "rest": " ".join(rest), "beats": beats, "short": len(beats) <= FEW}


def facts(about: Any) -> str:
    """The comparison in a line: data, budget, seed."""
    said = about.said
    parts = [f"{said['images']:,} images to train on"]
    parts += [f"{said['test_images']:,} to judge by"] if said["test_images"] else []
    parts += [f"{said['classes']} classes"] if said.get("classes") else []
    parts += [f"budget {said['budget']} a method"] if said.get("budget") else ["existing runs, no common budget"]
    return ", ".join([*parts, f"seed {said['seed']}"]) + "."


def overlap(about: Any) -> str:
    """A warning where images to judge by are among those to train on; empty without such."""
    count = (about.said.get("facts") or {}).get("overlap")
    if not count:
        return ""
    return f"{count:,} of the images to judge by {'is' if count == 1 else 'are'} among those to train on."


def settings(about: Any) -> list[tuple[str, str]]:
    """Titles and texts of what is folded away: each method as it was run, environment, facts."""
    found = []
    for each in about.methods:
        file = about.folder / each["run"] / "config.json"  # an absolute path stands for itself
        text = json.dumps(each, indent=1)
        if file.is_file():
            text += "\n\n" + file.read_text().strip()
        found.append((f"Settings of {each['name']}", text))
        stage = (each.get("tokenizer") or {}).get("run")
        file = about.folder / str(stage) / "config.json"
        if stage and file.is_file():
            found.append((f"Settings of {each['name']}'s tokenizer", file.read_text().strip()))
    for key, title in SHUT.items():
        if about.said.get(key):
            found.append((title, json.dumps(about.said[key], indent=1)))
    return found
