"""What each verb of the command line takes and does; each imports what it needs when it is called."""

import contextlib
import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from . import __version__
from .arguments import check_names, override, parse
from .config import UsageError, to_json

Result = dict[str, Any]
"""what a verb reports with --json"""

SUMMARY = {
    "demo": "the main job in minutes: pre-train on real photographs, evaluate, draw",
    "pretrain": "RECIPE DATA: pre-train a backbone; the same --out again continues",
    "evaluate": "MODEL... PROTOCOL... --train DATA --test DATA: what the features are worth",
    "show": "MODEL WHAT IMAGES: draw reconstruction, tokens, attention, patches, augmentations or curves",
    "recipes": "list the recipes: paper, expected number, cost",
}

PROTOCOLS = ("knn", "linear")
"""of `unmask evaluate`"""


@dataclass(frozen=True)
class Common:
    """Options of every verb."""

    json: bool = False
    """print one JSON object as the last line on standard output"""
    debug: bool = False
    """show a traceback when something fails"""


def pretrain(arguments: list[str]) -> Result:
    """Pre-train, continue, or with --dry-run say what it would cost."""
    import tyro

    from . import forecast
    from .console import Console
    from .options import Options
    from .pretrain import both_stages, carry_out, planned
    from .recipes import RECIPES, Facts, find, name_of

    @dataclass(frozen=True)
    class Arguments(Common, Options):
        recipe: tyro.conf.Positional[str] = ""
        """a recipe's name; `unmask recipes` lists them"""
        data: tyro.conf.Positional[str] = ""
        """images: a folder, tar or parquet (or a quoted glob), hf:NAME, demo:train"""
        from_: Annotated[str | None, tyro.conf.arg(name="from", help_behavior_hint="")] = None
        """start from these weights: RUN or RUN@STEP"""
        dry_run: bool = False
        """say sizes, bad files, steps, hours, disk and memory; then stop"""

    if {"-h", "--help"} & set(arguments):  # the verb's own options, then every field of the recipe by its dotted name
        first = arguments[0] if not arguments[0].startswith("-") else ""
        named = next((word for word in arguments if word in map(name_of, RECIPES)), first)
        config = find(named)(Facts()) if named else None
        with contextlib.suppress(SystemExit):
            parse(Arguments, ["--help"], "pretrain", SUMMARY["pretrain"])
        if config is not None:
            print(f"\nEvery field of {named}, by its dotted name, after RECIPE and DATA:\n")
            override(config, ["--help"], named)
        raise SystemExit(0)
    given, rest = parse(Arguments, arguments, "pretrain", SUMMARY["pretrain"], unknown=True)
    if given.recipe in ("", "[]") or not given.data:  # []: the parser met an unknown option first
        raise UsageError("pretrain needs RECIPE and DATA, before dotted names: unmask pretrain mae FOLDER")
    check_names(rest, Arguments)
    options = Options(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Options)})
    override(find(given.recipe)(Facts()), rest, given.recipe)  # misspelt names are told before anything is read
    if not given.dry_run:
        options = both_stages(given.recipe, given.data, options)
    with planned(given.recipe, given.data, options, lambda c: override(c, rest, given.recipe)) as plan:
        report = {"seed": plan.config.seed, "steps": forecast.total_steps(plan.config, len(plan.source))}
        if given.dry_run:
            console = Console(plan.world.first)
            cost = forecast.cost_of(plan.config, plan.source, plan.method, plan.world)
            for line in [*plan.notes, *cost.lines(), "dry run: nothing was written"]:
                console.say(line)
            planned_run = {"run": plan.config.out, "step": None, "resumed_from": None, "loss": None, "figures": []}
            return planned_run | report | {"dry_run": cost._asdict()}
        before = _newest(Path(plan.config.out))
        return _run_result(carry_out(plan), before) | report


def _newest(run: Path) -> int | None:
    """The step that a run will go on from; None: there is no such run yet."""
    from .checkpoint import latest

    return latest(run) if (run / "config.json").exists() else None


def _run_result(run: Any, resumed_from: int | None) -> Result:
    losses = [event["loss"] for event in run.metrics() if "loss" in event]
    return {
        "run": str(run.path),
        "step": run.latest(),
        "steps": run.config.steps,
        "resumed_from": resumed_from,
        "loss": losses[-1] if losses else None,
        "figures": sorted(str(path) for path in run.figures.glob("*.png")),
    }


def demo(arguments: list[str]) -> Result:
    """Carry out the demo and print its table."""
    from .console import Console
    from .demo import STEPS
    from .demo import demo as carry_out
    from .evaluate import table

    @dataclass(frozen=True)
    class Arguments(Common):
        out: Path = Path("demo")
        """folder for everything it makes; the same one again continues"""
        steps: int = STEPS
        """optimizer steps"""
        seed: int = 0
        """names every random draw"""

    given = parse(Arguments, arguments, "demo", SUMMARY["demo"])
    before = _newest(given.out / "run")
    console = Console()
    with _progress(console) as progress:
        made = carry_out(given.out, steps=given.steps, seed=given.seed, progress=progress)
    console.rich.print(table(made.rows, title="which photograph is this crop from?"))
    console.say(
        "chance is 5.6 %. The ViT learned without labels, in minutes; its features should beat raw pixels and\n"
        "the untrained ViT by far. Masked image modelling wants many images seen: longer training is better."
    )
    for figure in made.figures:
        console.say(f"picture: {figure}")
    return {"seed": given.seed} | _run_result(made.run, before) | {"table": made.rows}


@contextlib.contextmanager
def _progress(console: Any) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """One line that says what is being done and how far it is; gone when it is done."""
    from rich.live import Live

    with Live(console=console.rich, transient=True, auto_refresh=False) as line:

        def of(name: str) -> Callable[[int, int], None]:
            return lambda done, total: line.update(f"{name}: {done:,} of {total:,} images", refresh=True)

        yield of


def evaluate(arguments: list[str]) -> Result:
    """Judge models by labelled images and print one table."""
    import tyro

    from . import parallel
    from .checkpoint import write_atomically
    from .console import Console
    from .evaluate import table
    from .models import evaluate as judge

    @dataclass(frozen=True)
    class Arguments(Common):
        what: tyro.conf.Positional[tuple[str, ...]] = ()
        """MODEL... PROTOCOL...: runs, untrained:RECIPE, pixels; then knn, linear"""
        train: str = ""
        """labelled images that the classifiers learn from"""
        test: str = ""
        """labelled images that they are judged by"""
        pool: str = "cls,mean"
        """features: cls (the class token), mean (of the patches), or both"""
        layers: Literal["last"] = "last"
        """which blocks: the last, after the final norm"""
        k: str = ""
        """neighbors of k-NN (default: 10,20,100,200)"""
        labels: Literal["auto", "folder", "none"] = "auto"
        """where labels come from"""
        seed: int = 0
        """of the bootstrap and the probe"""
        device: str = "auto"
        """auto, cpu, cuda or cuda:1"""
        workers: int = -1
        """decoding processes (default: up to four)"""
        out: Path | None = None
        """write the results as JSON, with everything needed to repeat them"""

    given = parse(Arguments, arguments, "evaluate", SUMMARY["evaluate"])
    models, asked = _divide(given.what)
    if not given.train or not given.test:
        raise UsageError("evaluate needs --train DATA and --test DATA, both labelled")
    pools = _words(given.pool, ("cls", "mean"), "--pool")
    try:
        ks = tuple(int(k) for k in given.k.split(",")) if given.k else None
    except ValueError:
        raise UsageError(f"--k {given.k}: give numbers, as in --k 10,20") from None
    if given.out is not None:  # told now, not after an hour
        if given.out.is_dir():
            raise UsageError(f"--out {given.out} is a folder; give a file, as in --out {given.out / 'results.json'}")
        given.out.parent.mkdir(parents=True, exist_ok=True)
    world = parallel.start(given.device)
    console = Console(world.first)
    with _progress(console) as progress:
        rows = judge(
            models, asked, given.train, given.test, labels=given.labels, pools=pools, ks=ks, seed=given.seed,
            device=world.device, workers=given.workers, note=console.say, progress=progress,
        )  # fmt: skip
    console.rich.print(table(rows))
    if given.out is not None:
        content = {"version": __version__, "settings": to_json(dataclasses.asdict(given)), "results": rows}
        write_atomically(given.out, json.dumps(content, indent=1) + "\n")
    return {"seed": given.seed, "results": rows}


def _divide(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Split MODEL... PROTOCOL...: the first word that is a protocol ends the models."""
    first = next((i for i, word in enumerate(words) if word in PROTOCOLS), len(words))
    models, asked = tuple(words[:first]), tuple(dict.fromkeys(words[first:]))
    unknown = [word for word in asked if word not in PROTOCOLS]
    if models and not asked and not Path(models[-1]).exists():  # perhaps a protocol, misspelt
        unknown = [word for word in models[-1:] if difflib.get_close_matches(word, PROTOCOLS)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], PROTOCOLS, n=1)
        cure = f"did you mean {near[0]}?" if near else f"there are: {', '.join(PROTOCOLS)}; models come first"
        raise UsageError(f"no protocol {unknown[0]!r}; {cure}")
    if not models or not asked:
        raise UsageError(f"give models, then protocols ({', '.join(PROTOCOLS)}): unmask evaluate RUN knn linear ...")
    return models, asked


def _words(text: str, known: tuple[str, ...], option: str) -> tuple[Any, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words or set(words) - set(known):
        raise UsageError(f"{option} {text}: give some of {', '.join(known)}, with commas between")
    return words


def show(arguments: list[str]) -> Result:
    """Draw one picture."""
    import tyro

    from .pictures import picture

    @dataclass(frozen=True)
    class Arguments(Common):
        model: tyro.conf.Positional[str] = ""
        """RUN or RUN@STEP; for attention and patches RUN:student too"""
        what: tyro.conf.Positional[str] = ""
        """reconstruction (MAE), tokens (dvae, BEiT), attention, patches, augmentations or curves"""
        data: tyro.conf.Positional[str | None] = None
        """images to draw, evenly spread over these"""
        out: Path | None = None
        """the picture (default: RUN/figures/WHAT.png)"""
        count: int = 8
        """images drawn"""
        size: int | None = None
        """pixels of the images' sides, for tokens, attention and patches (default: the run's)"""

    given = parse(Arguments, arguments, "show", SUMMARY["show"])
    if not given.model or not given.what:
        raise UsageError("show needs MODEL and WHAT, e.g. unmask show RUN reconstruction IMAGES")
    file = picture(given.model, given.what, given.data, given.out, given.count, given.size)
    print(file, file=sys.stderr)
    return {"file": str(file)}


def recipes(arguments: list[str]) -> Result:
    """Print the table of recipes."""
    from rich.console import Console
    from rich.table import Table

    from .recipes import RECIPES, card

    parse(Common, arguments, "recipes", SUMMARY["recipes"])
    cards = [card(recipe) for recipe in RECIPES]
    drawn = Table(show_lines=True)
    drawn.add_column("recipe", no_wrap=True)
    for column in ("what", "paper", "expected", "cost"):
        drawn.add_column(column, overflow="fold")
    for fields in cards:
        drawn.add_row(*(fields.get(c, "") for c in ("recipe", "what", "paper", "expected", "cost")))
    Console(stderr=True).print(drawn)
    return {"recipes": cards}


VERBS: dict[str, Callable[[list[str]], Result]] = {
    "demo": demo,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "show": show,
    "recipes": recipes,
}
"""every verb, in the order of `unmask --help`"""
