"""The methods of a comparison, trained one after the other under one budget by the recipes' ordinary path."""

import dataclasses
from pathlib import Path

from ..config import RunConfig
from ..data.classes import class_names
from ..data.sources import Source, same_place
from ..evaluate.labels import Note
from ..methods.classify import ClassifyConfig
from ..methods.ibot import IBOTConfig
from ..options import Options
from ..pretrain import carry_out, planned
from ..recipes import Facts, find
from ..run import Run
from ..stages import halved
from .entries import steps_of
from .settings import Settings

KEPT = 10
"""checkpoints of a run with a teacher, at most, spread evenly over its steps: they tell what became of the two"""


def train_all(data: str, source: Source, settings: Settings, note: Note) -> list[Path]:
    """Train what is not trained yet; what was stopped goes on.

    Args:
        data: DATA as it was given.
        source: the same, opened.
        settings: settled.
        note: told what begins.
    Returns:
        the runs, in the order of the methods.
    Raises:
        ValueError: a run in the folder is of another budget, seed or DATA; or a method cannot be trained.
        Stopped: a signal asked to stop; the state is saved.
    """
    for name in settings.methods:  # told before the first method has had its time
        if isinstance(find(name)(Facts()).method, ClassifyConfig):
            class_names(source)
    runs = []
    for i, name in enumerate(settings.methods):
        out = settings.trained / name
        if _finished(out, data, settings):
            note(f"{name}: {out} is finished")
        else:
            note(f"{name}: {i + 1} of {len(settings.methods)} methods, {settings.budget} each")
            with planned(name, data, _options(out, settings)) as plans:
                for plan in plans:
                    carry_out(plan._replace(config=spread(plan.config)))
        runs.append(out)
    return runs


def _options(out: Path, settings: Settings) -> Options:
    return Options(
        out=out,
        seed=settings.seed,
        budget=settings.budget,
        test=settings.test,
        workers=settings.workers,
        device=settings.device,
        precision=settings.precision,
        eval_every=settings.interval(),
    )


def spread(config: RunConfig) -> RunConfig:
    """Let a run with a teacher, whose steps are settled, keep checkpoints from all over it."""
    if not isinstance(config.method, IBOTConfig) or config.steps is None:
        return config
    return dataclasses.replace(config, save_every=str(-(-config.steps // KEPT)), keep=KEPT)


def _finished(out: Path, data: str, settings: Settings) -> bool:
    """Whether a run is there and has made its last step.

    Raises:
        ValueError: it is not the run that was asked for.
    """
    if not (out / "config.json").is_file():
        return False
    run = Run(out)
    config = run.config
    assert settings.budget is not None
    budget = halved(settings.budget) if (out / "tokenizer").is_dir() else settings.budget
    wanted = {"budget": (config.budget, budget), "seed": (config.seed, settings.seed)}
    wanted |= {"test": (config.data.test, settings.test)}
    changed = [f"{name}: {had!r} -> {asked!r}" for name, (had, asked) in wanted.items() if had != asked]
    if not same_place(config.data.train, data):
        changed.append(f"data: {config.data.train!r} -> {data!r}")
    if changed:
        raise ValueError(f"{out} belongs to another comparison; differing: {'; '.join(changed)}; choose another --out")
    return (run.latest() or 0) >= steps_of(run)
