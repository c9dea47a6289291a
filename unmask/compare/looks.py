"""Analyses and pictures of all runs, each of those that it applies to (`kinds`)."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..analyses import own_images
from ..analyze import ANALYSES, analyze
from ..analyze.continuation import moves
from ..analyze.subject import Ask
from ..data.sources import Source
from ..evaluate.labels import Note
from ..models import open_subjects, parse_run
from ..pictures import draw_attention, draw_augmentations, draw_patches, draw_reconstruction, draw_tokens
from ..run import Run
from ..show import curves
from . import kinds
from .entries import Entry
from .images import Images, with_label
from .pieces import Pieces, stamp
from .settings import Settings

DRAWN = 8
"""images of a picture"""


def study_all(
    entries: Sequence[Entry], images: Images, settings: Settings, device: torch.device, pieces: Pieces, note: Note
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run every analysis that applies, on the test images.

    Returns:
        what compare.json lists, and what was left out and why.
    """
    made, left = [], []
    for what, applies in kinds.ANALYSES.items():
        if what in settings.skip:
            continue
        found = [member for entry in entries for member in _members(entry, applies)]
        if found and applies.labelled and not images.labelled:
            left.append(f"{what}: needs labels")
            continue
        if applies.moving:
            still = [name for name, spec in found if not spec]
            left += [f"{what}: {name} keeps no checkpoint before its end, where the rate is 0" for name in still]
            found = [(name, spec) for name, spec in found if spec]
        groups = [[member] for member in found] if applies.alone else [found] if found else []
        for group in groups:
            names = [name for name, _ in group]
            stem = f"analyses/{what}" + (f"-{names[0]}" if applies.alone else "")
            count = settings.count or ANALYSES[what].count
            asked = {"models": group, "count": count, "seed": settings.seed, "data": _of(images)}
            asked["weights"] = [stamp(run, step) for run, step, _ in (parse_run(spec) for _, spec in group) if step]
            asked |= {"steps": settings.going_on} if ANALYSES[what].train else {}
            bank = with_label(images.train) if images.labelled else None
            ask = Ask(images.test, bank, count, settings.seed, settings.going_on)

            def build(file: Path, what: str = what, group: list = group, ask: Ask = ask) -> None:
                note(f"{what}: {', '.join(name for name, _ in group)}")
                specs, seed = [spec for _, spec in group], settings.seed
                subjects = open_subjects(specs, images.test, seed=seed, device=device)
                if ANALYSES[what].train and subjects[0].run is not None:  # goes on with the images of the run itself
                    ask = dataclasses.replace(ask, train=_going_on(subjects[0].run, images))
                named = [s._replace(name=name) for s, (name, _) in zip(subjects, group, strict=True)]
                analyze(what, named, ask, file)

            if _made(pieces, f"{stem}.png", asked, build, left, stem.partition("/")[2]):
                made.append({"what": what, "models": names, "numbers": f"{stem}.json", "figure": f"{stem}.png"})
    return made, left


def draw_all(
    entries: Sequence[Entry], images: Images, settings: Settings, pieces: Pieces, note: Note
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw every picture that applies, of the test images; returns as `study_all` does."""
    made, left = [], []
    for entry in entries:
        for what, applies in kinds.PICTURES.items():
            parts = [(entry.name, entry.run, entry.step)] if entry.kind in applies.kinds else []
            if what == "tokens" and entry.tokenizer is not None:
                parts.append((f"{entry.name}-tokenizer", entry.tokenizer, entry.tokenizer.latest() or 0))
            for name, run, step in parts if what not in settings.skip else []:
                file = f"pictures/{name}-{what}.png"

                def build(out: Path, what: str = what, run: Run = run, step: int = step, file: str = file) -> None:
                    note(f"picture: {file}")
                    _draw(what, run, step, images, out)

                asked = {"run": str(run.path), "step": step, "weights": stamp(run, step), "data": _of(images)}
                if _made(pieces, file, asked, build, left, f"{what} of {name}"):
                    made.append({"method": entry.name, "what": what, "file": file})
    return made, left


def _made(
    pieces: Pieces, file: str, asked: dict[str, Any], build: Callable[[Path], None], left: list[str], what: str
) -> bool:
    """Have one figure made; one that cannot be is said to be left out: the others, and the answer, stand."""
    try:
        pieces.make(file, asked, build)
    except (ValueError, RuntimeError) as error:
        left.append(f"{what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
        return False
    return True


def _draw(what: str, run: Run, step: int, images: Images, out: Path) -> None:
    if what == "curves":
        curves.draw(run.metrics(), out)
    elif what == "augmentations":
        draw_augmentations(run, images.train, out, DRAWN)
    else:
        draw = {
            "reconstruction": draw_reconstruction, "tokens": draw_tokens, "attention": draw_attention,
            "patches": draw_patches,
        }[what]  # fmt: skip
        draw(run, step, images.test, out, DRAWN)


def _members(entry: Entry, applies: kinds.Applies) -> list[tuple[str, str]]:
    """What an analysis looks at of one run: names and MODELs; a MODEL is empty where there is no fit checkpoint."""
    found = []
    if entry.kind in applies.kinds:
        step = _moving_step(entry) if applies.moving else entry.step
        found.append((entry.name, "" if step is None else f"{entry.run.path}@{step}"))
    if "dvae" in applies.kinds and entry.tokenizer is not None and entry.kind not in applies.kinds:
        found.append((f"{entry.name}-tokenizer", f"{entry.tokenizer.path}@{entry.tokenizer.latest()}"))
    return found


def _moving_step(entry: Entry) -> int | None:
    """The stored step nearest to half of the run at which the learning rate is not nearly 0."""
    (subject,) = open_subjects([f"{entry.run.path}@{entry.step}"], None)
    half, config = subject.at().steps / 2, entry.run.config
    steps = [s for s in entry.run.steps() if moves(config.optim, config.batch, subject._replace(step=s).at())]
    return min(steps, key=lambda step: abs(step - half), default=None)


def _going_on(run: Run, images: Images) -> Source:
    """What a run goes on with: its own images, or those of the comparison, which are the same, where they moved."""
    try:
        return own_images(run)
    except FileNotFoundError:
        return images.train


def _of(images: Images) -> list[Any]:
    return [images.train.name, len(images.train), images.test.name, len(images.test), images.content]
