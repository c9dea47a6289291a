"""The runs that are compared: opened, checked against DATA, and described by their logs."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import parallel
from ..config import DataConfig
from ..data.fingerprint import fingerprints
from ..data.sources import Source, open_source, same_place
from ..data.survey import survey
from ..forecast import flops_per_image
from ..methods.beit import BEiTConfig
from ..models import parse_run, vit_of
from ..run import Run, held_in
from ..weights.files import read_json
from .kinds import Kind, kind_of

POINTS = 400
"""of a curve, at most"""
ALIKE = 0.02
"""difference of mean or deviation, of images in [0, 1], up to which two samples may be of the same images"""


class Entry(NamedTuple):
    """One run in a comparison."""

    name: str
    """unique; what tables and figures call it"""
    spec: str
    """RUN or RUN@STEP"""
    run: Run
    step: int
    kind: Kind
    tokenizer: Run | None
    """of a BEiT: the dVAE run that made its tokens, where it is still there"""
    notes: tuple[str, ...] = ()

    @property
    def images_seen(self) -> int:
        return self.step * self.run.config.batch


def open_entries(specs: Sequence[str], names: Sequence[str] | None = None) -> list[Entry]:
    """Open the runs of a comparison.

    Args:
        specs: `RUN` or `RUN@STEP`.
        names: what to call them; None: by their recipes, or their folders where two share one.
    Raises:
        ValueError, FileNotFoundError: no such run, without a checkpoint, or one without a ViT.
    """
    entries = []
    for spec in specs:
        run, step, part = parse_run(spec, "give a run directory, RUN or RUN@STEP")
        if part:
            raise ValueError(f"{spec}: compare looks at whole runs; leave :{part} out")
        kind, notes, at = kind_of(run.config.method), [], run.latest() if step is None else step
        if at is None or at not in run.steps():
            have = ", ".join(map(str, run.steps())) or "none yet"
            raise ValueError(f"{run.path} has no checkpoint {'' if step is None else step}; it has: {have}")
        if kind == "dvae":
            raise ValueError(f"{spec} is a dvae, which has no ViT to judge; compare the BEiT that predicts its tokens")
        if at < steps_of(run):
            notes.append(f"{spec}: compared at step {at} of {steps_of(run)}")
        entries.append(Entry(run.config.recipe, spec, run, at, kind, tokenizer_of(run), tuple(notes)))
    called = list(names or _names(entries))
    return [entry._replace(name=name) for entry, name in zip(entries, called, strict=True)]


def _names(entries: Sequence[Entry]) -> list[str]:
    recipes = [entry.name for entry in entries]
    folders = [entry.run.path.resolve().name for entry in entries]
    for names in (recipes, folders):
        if len(set(names)) == len(names):
            return names
    return [f"{name}-{i + 1}" for i, name in enumerate(folders)]


def steps_of(run: Run) -> int:
    """Optimizer steps of a whole run."""
    config, held = run.config, held_in(run.path)
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    images = config.data.images - (0 if held is None else len(held))
    return max(1, round(config.epochs * images / config.batch))


def tokenizer_of(run: Run) -> Run | None:
    """The dVAE run whose tokens a BEiT run predicts, by the tokenizer's fingerprint; None: it is not there."""
    method = run.config.method
    if not isinstance(method, BEiTConfig):
        return None
    there = Path(method.tokenizer_from)
    for place in (run.path / "tokenizer", there, run.path.parent / there):
        if (place / "config.json").is_file() and read_json(place / "health.json").get(
            "fingerprint"
        ) == method.tokenizer_hash:
            return Run(place)
    return None


def check_images(entries: Sequence[Entry], data: str, source: Source) -> list[str]:
    """Refuse runs that were trained on other images than DATA.

    The same images may lie elsewhere by now: compared by their bytes where the run's path still leads to
    them, else by their number, mean and deviation.

    Returns:
        what a reader should know.
    Raises:
        ValueError: names the run and both places.
    """
    notes, prints, surveys = [], None, {}
    for entry in entries:
        had = entry.run.config.data
        other = f"{entry.spec} was trained on {had.train} ({had.images} images) and DATA is {data} ({len(source)})"
        cure = "give the images that all runs were trained on"
        if len(source) != (had.drawn_from or had.images):
            raise ValueError(f"{other}: other images; {cure}")
        if had.shots:
            notes.append(
                f"{entry.spec} was trained on few of the images: --shots {had.shots}, {had.images} of {len(source)}"
            )
        if same_place(had.train, data):
            continue
        try:
            theirs = open_source(had.train, "none")
        except (FileNotFoundError, ValueError):
            theirs = None
        if theirs is not None:
            prints = np.sort(fingerprints(source)) if prints is None else prints
            if not np.array_equal(np.sort(fingerprints(theirs)), prints):
                raise ValueError(f"{other}: their bytes differ; {cure}")
            notes.append(f"{entry.spec} was trained on {had.train}: the same images in another place")
            continue
        how = entry.run.config.seed, had.channels, had.range
        if how not in surveys:
            surveys[how] = survey(source, seed=how[0], channels=how[1], value_range=how[2])
        _, *found = surveys[how]
        away = max(abs(a - b) for a, b in zip([*had.mean, *had.std], [*found[0], *found[1]], strict=True))
        measured = (had.mean, had.std) != (DataConfig().mean, DataConfig().std)
        if measured and away > ALIKE:
            raise ValueError(f"{other}: mean or deviation differ by {away:.3f}; {cure}")
        by = "number, mean and deviation" if measured else "number"
        notes.append(f"{entry.spec} was trained on {had.train}, not to be found from here; DATA has the same {by}")
    return notes


def described(entry: Entry, out: Path, images: int) -> dict[str, Any]:
    """What compare.json says of a run: sizes, cost, where it is; `gflop` is with the tokenizer's, `seconds` without."""
    run, config = entry.run, entry.run.config
    method = run.method(entry.step)
    vit, network = vit_of(method).config, vit_of(method)
    inside = run.path.resolve().is_relative_to(out.resolve())
    lines, tokenizer = before(run, entry.step), _tokenizer(entry, out)
    return {
        "name": entry.name,
        "recipe": config.recipe,
        "kind": entry.kind,
        "run": str(run.path.resolve().relative_to(out.resolve()) if inside else run.path.resolve()),
        "step": entry.step,
        "images_seen": entry.images_seen,
        "epochs": entry.images_seen / (config.data.images if config.data.shots else images),
        "seconds": seconds_of(lines, config.batch),
        "images_per_second": statistics.median(line["img/s"] for line in lines) if lines else None,
        "gflop": _gflop(run, entry.step) + (tokenizer["gflop"] if tokenizer else 0.0),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "vit": {
            "width": vit.width, "depth": vit.depth, "heads": vit.heads, "patch": vit.patch_hw[0],
            "image_size": vit.image_hw[0],
        },
        "own_pool": ",".join(config.method.pools),
        "tokenizer": tokenizer,
        "notes": list(entry.notes),
    }  # fmt: skip


def _tokenizer(entry: Entry, out: Path) -> dict[str, Any] | None:
    if entry.tokenizer is None:
        return None
    run, steps = entry.tokenizer, entry.tokenizer.latest() or 0
    inside = run.path.resolve().is_relative_to(out.resolve())
    return {
        "run": str(run.path.resolve().relative_to(out.resolve()) if inside else run.path.resolve()),
        "seconds": seconds_of(before(run, steps), run.config.batch),
        "images_seen": steps * run.config.batch,
        "gflop": _gflop(run, steps),
    }


def _gflop(run: Run, step: int) -> float:
    """What the steps of a run took, forward and backward."""
    config, alone = run.config, parallel.World(0, 1, torch.device("cpu"))
    return step * config.batch * flops_per_image(config, run.method(step), alone) / 1e9


def before(run: Run, step: int) -> list[dict[str, Any]]:
    """The lines of a run's log that measured a loss and a rate, up to a step."""
    return [line for line in run.metrics() if "img/s" in line and line["step"] <= step]


def seconds_of(lines: Sequence[dict[str, Any]], batch: int) -> float:
    """Seconds that steps took, of lines of the log; checkpoints and evaluations in between do not count."""
    return float(_clock(lines, batch)[-1]) if lines else 0.0


def _clock(lines: Sequence[dict[str, Any]], batch: int) -> np.ndarray:
    steps = np.array([0, *(line["step"] for line in lines)])
    return np.cumsum(np.diff(steps) * batch / np.array([line["img/s"] for line in lines]))


def curve(entry: Entry) -> list[dict[str, Any]]:
    """Loss and accuracy over a run: at most POINTS of step, images, seconds, loss, and eval/* where logged.

    The clock of a BEiT begins with its tokenizer's training.
    """
    batch, lines = entry.run.config.batch, before(entry.run, entry.step)
    judged = [line for line in entry.run.metrics() if line["step"] <= entry.step and _scores(line)]
    if not lines:
        return []
    first = entry.tokenizer
    begin = 0.0 if first is None else seconds_of(before(first, first.latest() or 0), first.config.batch)
    clock, steps = begin + _clock(lines, batch), [line["step"] for line in lines]
    taken: dict[int, dict[str, Any]] = {}
    room = max(2, POINTS - len(judged))
    for i in map(int, np.unique(np.linspace(0, len(lines) - 1, min(room, len(lines))).astype(int))):
        taken[steps[i]] = _point(lines, clock, i, steps[i], batch)
    for line in judged[-(POINTS - 2) :]:
        i = max(int(np.searchsorted(steps, line["step"], side="right")) - 1, 0)
        point = taken.setdefault(line["step"], _point(lines, clock, i, line["step"], batch))
        point.update(_scores(line))
    return [taken[step] for step in sorted(taken)]


def _point(lines: Sequence[dict[str, Any]], clock: np.ndarray, i: int, step: int, batch: int) -> dict[str, Any]:
    return {"step": step, "images": step * batch, "seconds": float(clock[i]), "loss": lines[i]["loss"]}


def _scores(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith(("eval/", "labelfree/"))}
