"""Why the methods differ: one analysis a file; arrays in, numbers and a figure out.

Each module has the formula as a pure function, and `run(subjects, ask) -> Finding` that applies it to models
and images. A1 to A8 compare models; B1 to B6 look into runs with a student and a teacher. docs/analyses.md says
how to read each.
"""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .subject import Ask, Subject

__all__ = ["ANALYSES", "Analysis", "analyze"]


@dataclass(frozen=True)
class Analysis:
    """Where an analysis is, and what `unmask show` has to know of it."""

    module: str
    count: int = 500
    """images, unless told otherwise"""
    train: bool = False
    """it goes on with a run, on its training images"""


ANALYSES: dict[str, Analysis] = {
    "attention-distance": Analysis("attention_distance"),
    "attention-nmi": Analysis("attention_nmi"),
    "amplitude": Analysis("amplitude"),
    "bands": Analysis("bands", 1000),
    "error-spectrum": Analysis("error_spectrum"),
    "range": Analysis("dependence"),
    "targets": Analysis("targets", 1000),
    "cka": Analysis("cka"),
    "teacher-student": Analysis("teacher_student", 1000),
    "averaging": Analysis("averaging", 1000, train=True),
    "target-noise": Analysis("target_noise", 250, train=True),
    "flatness": Analysis("flatness", 128),
    "collapse": Analysis("collapse"),
}
"""WHAT of `unmask show`: fidelity A1 to A8, B1 to B4, B6"""


def analyze(what: str, subjects: "Sequence[Subject]", ask: "Ask", out: str | Path) -> Path:
    """Run one analysis; write its figure, and its numbers beside it as JSON.

    Args:
        what: a name of ANALYSES.
        subjects: the models, opened.
        ask: the images, their number, the seed.
        out: the figure; the numbers get the same name with .json.
    Returns:
        the figure's file.
    Raises:
        ValueError: the analysis does not apply to a model, or images are missing.
    """
    from .. import __version__
    from ..checkpoint import write_atomically
    from ..show.grid import save
    from .intervals import plain

    found = importlib.import_module(f".{ANALYSES[what].module}", __name__).run(subjects, ask)
    file = save(found.figure, out)
    settings = {"data": ask.data and ask.data.name, "train": ask.train and ask.train.name}
    settings |= {"count": ask.count, "seed": ask.seed}
    if ANALYSES[what].train:
        settings["steps"] = ask.steps
    models = {subject.name: {"step": subject.step, "method": type(subject.method).__name__} for subject in subjects}
    content = {"analysis": what, "version": __version__, "models": models, "settings": settings}
    write_atomically(file.with_suffix(".json"), json.dumps(content | {"found": plain(found.numbers)}, indent=1) + "\n")
    return file
