"""`unmask pretrain RECIPE DATA`."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..arguments import check_names, override, parse
from ..config import UsageError
from .common import Common, Result, newest, run_result

if TYPE_CHECKING:
    from ..pretrain import Plan

ABOUT = "RECIPE DATA: pre-train a backbone; the same --out again continues"


def run(arguments: list[str]) -> Result:
    """Pre-train, continue, or with --dry-run say what it would cost."""
    import tyro

    from .. import forecast
    from ..options import Options
    from ..pretrain import carry_out, planned
    from ..recipes import RECIPES, Facts, find, name_of

    @dataclass(frozen=True)
    class Arguments(Common, Options):
        recipe: tyro.conf.Positional[str] = ""
        """a recipe's name; `unmask recipes` lists them"""
        data: tyro.conf.Positional[str] = ""
        """images: a folder, tar or parquet (or a quoted glob), hf:NAME, demo:train"""
        from_: Annotated[str | None, tyro.conf.arg(name="from", help_behavior_hint="")] = None
        """start from these weights: any MODEL (RUN, RUN@STEP, checkpoint file or folder, timm:NAME, hf:NAME)"""
        dry_run: bool = False
        """say sizes, bad files, steps, hours, disk and memory; then stop"""

    if {"-h", "--help"} & set(arguments):  # the verb's own options, then every field of the recipe by its dotted name
        first = arguments[0] if not arguments[0].startswith("-") else ""
        named = next((word for word in arguments if word in map(name_of, RECIPES)), first)
        config = find(named)(Facts()) if named else None
        with contextlib.suppress(SystemExit):
            parse(Arguments, ["--help"], "pretrain", ABOUT)
        if config is not None:
            print(f"\nEvery field of {named}, by its dotted name, after RECIPE and DATA:\n")
            override(config, ["--help"], named)
        raise SystemExit(0)
    given, rest = parse(Arguments, arguments, "pretrain", ABOUT, unknown=True)
    if given.recipe in ("", "[]") or not given.data:  # []: the parser met an unknown option first
        raise UsageError("pretrain needs RECIPE and DATA, before dotted names: unmask pretrain mae FOLDER")
    check_names(rest, Arguments)
    options = Options(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Options)})
    override(find(given.recipe)(Facts()), rest, given.recipe)  # misspelt names are told before anything is read
    with planned(given.recipe, given.data, options, lambda c: override(c, rest, given.recipe)) as plans:
        if given.dry_run:
            return rehearse(plans)
        done = []
        for stage in plans:
            before = newest(Path(stage.config.out))
            done.append((stage, run_result(carry_out(stage), before)))
        plan, result = done[-1]
        steps = forecast.total_steps(plan.config, len(plan.source))
        return result | {"seed": plan.config.seed, "steps": steps}


def rehearse(plans: "Iterator[Plan]") -> Result:
    """Say what each stage would cost; the report has the last one's numbers, `hours` those of all."""
    from .. import forecast
    from ..console import Console, duration

    costs, out, seed, console = [], "", 0, Console()
    for plan in plans:
        console = Console(plan.world.first)
        cost = forecast.cost_of(plan.config, plan.source, plan.method, plan.world)
        for line in [*plan.notes, *cost.lines()]:
            console.say(line)
        costs.append(cost._asdict())
        out, seed = plan.config.out, plan.config.seed
    more = {}
    if len(costs) > 1:
        more = {"hours": sum(cost["hours"] for cost in costs), "first_stage": costs[0]}
        console.say(f"both stages: {duration(3600 * more['hours'])}")
    console.say("dry run: nothing was written")
    report = {"run": out, "step": None, "resumed_from": None, "loss": None, "figures": []}
    return report | {"seed": seed, "steps": costs[-1]["steps"], "dry_run": costs[-1] | more}
