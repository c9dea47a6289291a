"""What is asked of a comparison, and what cannot be asked."""

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..analyze import ANALYSES
from ..config import UsageError, parse_interval
from ..forecast import read_budget
from ..nearest import unknown
from ..pictures import PICTURES
from ..recipes import Facts, find, name_of
from ..stages import first_stage
from .kinds import kind_of

FEW = "10%"
"""labels of the third column: a tenth of them, drawn several times"""
DRAWS = 3
"""draws of these labels"""


@dataclass(frozen=True)
class Settings:
    """The options of `unmask compare`."""

    methods: tuple[str, ...] = ()
    """recipes to train, one after the other: mae beit ibot dino supervised, or published ones"""
    runs: tuple[str, ...] = ()
    """runs to compare instead of training: RUN or RUN@STEP"""
    budget: str | None = None
    """what each method may cost: 20m or 2h, '500000 images', '1e6 gflop'"""
    out: Path = Path("comparison")
    """folder for everything it makes; the same command again goes on"""
    test: str | None = None
    """images to judge by (default: those of DATA that training holds out, a tenth by a hash of their bytes)"""
    protocols: tuple[Literal["knn", "linear", "attentive", "finetune"], ...] = ("knn", "linear")
    """how features are judged; knn and linear with a tenth of the labels, too"""
    layers: Literal["last", "best"] = "last"
    """of all models: after the final norm, or the best block on held-out training images"""
    count: int | None = None
    """images that an analysis measures (default: 128 to 1000, as the analysis has it)"""
    going_on: int = 500
    """steps that averaging and target-noise go on training for, in memory"""
    skip: tuple[str, ...] = ()
    """analyses and pictures to leave out"""
    eval_every: str | None = None
    """interval of evaluation while training: 500 (steps) or 20m (default: eight times a time budget, or 2m)"""
    seed: int = 0
    """of the trainings, the analyses, the probes and the intervals"""
    workers: int | None = None
    """loader processes of training and of judging (default: as pretrain and evaluate)"""
    device: str | None = None
    """auto, cpu, cuda or cuda:1 (default: auto)"""
    precision: Literal["auto", "bf16", "fp32"] | None = None
    """of training (default: as pretrain)"""

    @property
    def trained(self) -> Path:
        """Where the runs are that this comparison trains."""
        return self.out / "runs"

    def interval(self) -> str:
        """How often a run is judged while it trains."""
        amount, unit = read_budget(self.budget or "1h")
        return self.eval_every or (f"{amount / 8:g}s" if unit == "seconds" else "2m")

    def command(self, data: str) -> str:
        """What to type to repeat it."""
        words = ["unmask", "compare", data]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default or field.name == "out":
                many = value if isinstance(value, tuple) else (value,)
                words += [f"--{field.name.replace('_', '-')}", *map(str, many)]
        return shlex.join(words)


def settled(settings: Settings) -> Settings:
    """Check what was asked for, before the first of many minutes is spent.

    Returns:
        the same, with recipes by their names on the command line.
    Raises:
        UsageError, ValueError: names what cannot be meant, and the cure.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "compare runs in one process; train on several with torchrun -m unmask pretrain, then compare --runs"
        )
    if bool(settings.methods) == bool(settings.runs):
        raise UsageError(
            "compare needs methods to train or runs that exist, and not both: unmask compare DATA --methods mae ibot "
            "--budget 20m, or unmask compare DATA --runs RUN RUN"
        )
    if settings.out.exists() and not settings.out.is_dir():
        raise UsageError(f"--out {settings.out} is a file; give a folder")
    for name in settings.skip:
        if name not in {*ANALYSES, *PICTURES}:
            raise UsageError(f"--skip {name}: {unknown('analysis or picture', name, [*ANALYSES, *PICTURES])}")
    if settings.count is not None and settings.count < 8:
        raise UsageError(f"--count {settings.count}: give at least 8 images")
    if settings.going_on < 100:
        raise UsageError(f"--going-on {settings.going_on}: give at least 100 steps, or --skip averaging target-noise")
    if not settings.protocols:
        raise UsageError("no --protocols; give some of knn linear attentive finetune")
    parse_interval(settings.eval_every or "1")
    _no_twins("--runs", settings.runs)
    if settings.runs:
        if settings.budget:
            raise UsageError(f"--budget {settings.budget} is for methods to train; runs have had theirs: leave it out")
        return settings
    if not settings.budget:
        raise UsageError("--methods needs --budget, the same for each: 20m, '500000 images' or '1e6 gflop'")
    read_budget(settings.budget)
    methods = tuple(name_of(find(name)) for name in settings.methods)
    _no_twins("--methods", methods)
    for name in methods:
        _check_budget(name, settings.budget, settings.trained / name)
        if kind_of(find(name)(Facts()).method) == "dvae":
            raise UsageError(f"--methods {name}: a tokenizer has no ViT to judge; beit trains its own")
    return dataclasses.replace(settings, methods=methods)


def _check_budget(name: str, budget: str, out: Path) -> None:
    """Refuse, before the methods ahead of it have had their time, a method that a budget cannot train."""
    first = first_stage(name, {"budget": budget}, out)  # a published BEiT has no tokenizer, and says so here
    amount, unit = read_budget(budget)
    recipes = [first["recipe"], name] if first else [name]
    for recipe in recipes if unit == "images" else ():
        batch = find(recipe)(Facts()).batch  # a CPU's: on a GPU some take more, and are refused when it is their turn
        if amount < batch * len(recipes):
            half = "half of it for its tokenizer, " if first else ""
            raise UsageError(
                f"--budget {budget!r} is less than {name} needs: {half}steps are of {batch} images; "
                f"give '{batch * len(recipes)} images' or more"
            )


def _no_twins(option: str, given: tuple[str, ...]) -> None:
    twins = [name for i, name in enumerate(given) if name in given[:i]]
    if twins:
        raise UsageError(f"{option} {twins[0]} twice; give each once")
