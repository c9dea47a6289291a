"""B1, teacher against student: k-NN accuracy over training, and the gap between the two."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from ..methods.ibot import IBOT
from . import charts
from .intervals import Estimate, mean_of
from .subject import Ask, Finding, Pictures, Subject, embed, halves, look, minibatches, one, right

WHAT = "teacher-student"
POOL = "cls"
"""the token that both are trained by"""


class Pair(NamedTuple):
    """One logged number of both networks over training."""

    name: str
    steps: Float[np.ndarray, "n"]
    student: Float[np.ndarray, "n"]
    teacher: Float[np.ndarray, "n"]


def logged_pairs(lines: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Find evaluations that a run logged of both networks.

    Keys begin with `eval/` and have a part `student`; the teacher's is the same with `teacher` in its place, or
    without it: the teacher is the run's backbone.
    """
    found = []
    keys = sorted({key for line in lines for key in line if key.startswith("eval/") and "student" in key.split("/")})
    for key in keys:
        parts = key.split("/")
        at = parts.index("student")
        others = ["/".join([*parts[:at], "teacher", *parts[at + 1 :]]), "/".join(parts[:at] + parts[at + 1 :])]
        for other in others:
            rows = [(line["step"], line[key], line[other]) for line in lines if key in line and other in line]
            if rows:
                steps, student, teacher = np.array(rows, np.float64).T
                found.append(Pair("/".join(parts[1:at] + parts[at + 1 :]), steps, student, teacher))
                break
    return found


def vanishes(steps: Sequence[int], gap: Estimate) -> list[int]:
    """The steps at which the interval of the gap holds 0."""
    return [s for s, low, high in zip(steps, gap.low, gap.high, strict=True) if low <= 0 <= high]


@torch.no_grad()
def scores(subject: Subject, method: IBOT, known: Pictures, asked: Pictures) -> dict[str, Float[np.ndarray, "Q"]]:
    """Whether k-NN on [CLS] is right, image by image, with each of the two networks."""
    found = {}
    for name, network in (("student", method.student), ("teacher", method.teacher)):
        bank, queries = (embed(network.vit, minibatches(subject, each))[POOL] for each in (known, asked))
        found[name] = right(bank, known.labels, queries, asked.labels)
    return found


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Judge all stored checkpoints of a run on DATA; without DATA, draw what was logged while it trained."""
    (subject,) = one(subjects, WHAT)
    subject.of(WHAT, IBOT)
    run_ = subject.trained(WHAT)
    if ask.data is None:
        return _from_log(subject, logged_pairs(run_.metrics()))
    train, test = halves(ask.data, ask, WHAT)
    known, asked = look(subject, train, replace(ask, count=10 * ask.count)), look(subject, test, ask)
    steps, rows = run_.steps(), []
    for step in steps:
        method = run_.method(step).to(subject.device)
        assert isinstance(method, IBOT)
        rows.append(scores(subject, method, known, asked))
    both = {name: np.stack([row[name] for row in rows], 1) for name in rows[0]}  # [Q n]
    curves = {name: mean_of(values, ask.seed) for name, values in both.items()}
    gap = mean_of(both["teacher"] - both["student"], ask.seed)
    note = (
        f"k-NN (k 20) on [CLS] of {len(steps)} stored checkpoints: {len(known.labels)} images to learn from, "
        f"{len(asked.labels)} to judge, the same for both networks and all steps. The gap's 95 % interval is paired, "
        "image by image."
    )
    figure, (left, last) = charts.panels(["k-NN accuracy", "teacher minus student"], note=note, width=3.4)
    for i, (name, curve) in enumerate(curves.items()):
        charts.curve(left, np.array(steps), curve, charts.color(i), name)
    charts.curve(last, np.array(steps), gap, charts.color(2))
    _finish(left, last)
    numbers = {
        "images": len(asked.labels), "learned_from": len(known.labels), "steps": steps, **curves, "gap": gap,
        "not_told_apart": vanishes(steps, gap),
    }  # fmt: skip
    return Finding({subject.name: numbers}, figure)


def _from_log(subject: Subject, pairs: list[Pair]) -> Finding:
    if not pairs:
        raise ValueError(
            f"{subject.name} has logged no eval/ of student and teacher; give labelled DATA, and its stored "
            "checkpoints are judged"
        )
    note = "As logged while training, on the same images for both networks. Without intervals: give DATA for these."
    figure, (left, last) = charts.panels(["accuracy", "teacher minus student"], note=note, width=3.4)
    numbers: dict[str, Any] = {}
    for i, pair in enumerate(pairs):
        style = {"color": charts.color(i), "marker": "o", "markersize": 3, "linewidth": 1.4}
        left.plot(pair.steps, pair.teacher, **style, label=f"{pair.name}, teacher")
        left.plot(pair.steps, pair.student, **style, linestyle="--", label=f"{pair.name}, student")
        last.plot(pair.steps, pair.teacher - pair.student, **style, label=pair.name)
        numbers[pair.name] = {**pair._asdict(), "gap": pair.teacher - pair.student}
    _finish(left, last)
    return Finding({subject.name: numbers}, figure)


def _finish(left: charts.Axes, last: charts.Axes) -> None:
    charts.level(last, 0.0, "no gap")
    for axes in (left, last):
        charts.labels(axes, "step", "")
        charts.percent(axes)
        charts.legend(axes)
