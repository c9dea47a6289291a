"""`unmask pretrain`: from a recipe's name and a folder of images to a finished, pictured run."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from . import checkpoint, parallel
from .config import RunConfig, parse_interval
from .data.sources import Source, holdout_split, open_source
from .data.stream import HostBatch
from .data.survey import survey
from .evaluate import Online
from .forecast import describe, read_budget, steps_for
from .methods.base import Batch, Method
from .models import parse_run
from .parallel import World
from .recipes import Facts, find, name_of
from .run import Run, compare
from .show import augmentations, curves
from .train import Evaluate, prepare, train
from .vit import ViT


@dataclass(frozen=True)
class Options:
    """What every training verb takes; None leaves the recipe's value."""

    out: Path | None = None
    """run directory; the same one again continues the run (default: runs/RECIPE-DATE-TIME)"""
    seed: int | None = None
    """names every random draw"""
    epochs: float | None = None
    """passes over the data"""
    steps: int | None = None
    """optimizer steps, instead of epochs"""
    budget: str | None = None
    """length by cost: 20m or 2h (measured once, then fixed), '500000 images', '1e6 gflop'"""
    batch: int | None = None
    """images an optimizer step, over all devices"""
    device_batch: int | None = None
    """images a forward pass on one device (default: found by measuring one)"""
    from_: str | None = None
    """weights to start from: a RUN (--from)"""
    test: str | None = None
    """labelled images for --eval-every"""
    labels: Literal["auto", "folder", "none"] | None = None
    """where labels come from"""
    channels: int | None = None
    """image channels; other than 3 reads multi-band TIFF"""
    range: tuple[float, float] | None = None
    """values of 16-bit or float images that become black and white (default: each file's own extremes)"""
    save_every: str | None = None
    """checkpoint interval: 500 (steps) or 20m"""
    eval_every: str | None = None
    """interval of k-NN and linear evaluation: 500 (steps) or 20m"""
    workers: int | None = None
    """loader processes a device"""
    device: str | None = None
    """auto, cpu, cuda or cuda:1"""
    precision: Literal["auto", "bf16", "fp32"] | None = None
    """bf16 where the hardware has it, or fp32"""
    compile: Literal["auto", "on", "off"] | None = None
    """torch.compile per block"""


Configure = Callable[[RunConfig], RunConfig]
"""changes a resolved configuration: how dotted names on the command line arrive"""


class Plan(NamedTuple):
    """Everything that is settled before the first step."""

    config: RunConfig
    source: Source
    """the images to train on"""
    labelled: tuple[Source, Source] | None
    """images to evaluate with while training: to learn from, to test"""
    method: Method
    world: World
    notes: list[str]
    """what a person should know before it starts"""


def pretrain(recipe: str, data: str, *, configure: Configure | None = None, **options: Any) -> Run:
    """Pre-train a backbone, or go on with a run that was stopped.

    Args:
        recipe: `mae`, ... or a published one, `mae-vit-b16-in1k`; `unmask recipes` lists them.
        data: a folder, a tar or parquet file (or a quoted glob), `hf:NAME`, `demo:train`.
        configure: changes any field of the recipe's RunConfig, by dataclasses.replace.
        options: fields of Options; `from_` for --from.
    Returns:
        the finished run.
    Raises:
        ValueError, OSError, RuntimeError: one line that names the value, the place and the cure.
    """
    with planned(recipe, data, Options(**options), configure) as plan:
        return carry_out(plan)


@contextmanager
def planned(recipe: str, data: str, options: Options, configure: Configure | None = None) -> Iterator[Plan]:
    """Settle a run without starting it; on leaving, the process group is left too."""
    world = parallel.start(options.device or "auto")
    try:
        yield settle(recipe, data, options, configure or (lambda config: config), world)
    finally:
        parallel.stop(world)


def settle(recipe: str, data: str, options: Options, configure: Configure, world: World) -> Plan:
    """Turn a recipe, data and options into a Plan; an existing run gives its own configuration."""
    recipe = name_of(find(recipe))
    (where, *_) = world.gather(str(options.out or Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"))
    out = Path(where)  # the clocks of ranks may differ
    if world.agree((out / "config.json").exists())[0]:
        run = Run(out)
        config, source = _continued(run.config, recipe, data, options, configure, world)
        fresh = run.latest() is None
    else:
        config, source = _fresh(recipe, data, options, configure, out, world)
        fresh = True
    check(config)
    labelled = None
    if config.eval_every:
        rest, held_out = holdout_split(source) if config.data.holdout else (source, None)
        test = open_source(config.data.test, config.data.labels) if config.data.test else held_out
        if test is None:
            raise ValueError(
                f"--eval-every needs labelled images and none of {config.data.train} are held out; "
                f"give --test DATA, or leave --eval-every out"
            )
        source, labelled = rest, (rest, test)
    elif config.data.holdout:  # what was held out stays so, also when --eval-every is no longer asked for
        source, _ = holdout_split(source)
    budget = config.budget if config.steps is None and config.epochs is None else None
    config, method = prepare(config, world)
    if budget:
        steps = steps_for(budget, config, source, method, world)
        config, method = prepare(dataclasses.replace(config, steps=steps), world)  # measuring moved the weights
    notes = []
    if config.init_from and fresh:
        notes.append(f"weights from {config.init_from}")
        start_from(config.init_from, method)
    return Plan(config, source, labelled, method, world, notes + describe(config, source, method, world))


def start_from(spec: str, method: Method) -> None:
    """Give a method the weights of a run, all of them.

    Raises:
        ValueError, FileNotFoundError: there is no such run or checkpoint, or it is of another architecture.
    """
    run, step, part = parse_run(spec, "give --from a run directory (RUN, RUN@STEP)")
    if part:
        raise ValueError(f"--from {spec}: all weights are taken, student's and teacher's; leave :{part} out")
    at = run.latest() if step is None else step
    if at is None or at not in run.steps():
        raise ValueError(f"--from {spec}: no such checkpoint; there are {', '.join(map(str, run.steps())) or 'none'}")
    try:
        checkpoint.load(run.path, at, method, single=True)
    except ValueError as error:
        if "another architecture" not in str(error):
            raise
        raise ValueError(
            f"--from {spec}: {error}; give the recipe ({run.config.recipe}), sizes and --channels of that run"
        ) from error


def check(config: RunConfig) -> None:
    """Refuse numbers that cannot be meant, before the first of many seconds is spent.

    Raises:
        ValueError: names the option, its value and what it may be.
    """
    counts = {
        "--epochs": config.epochs,
        "--steps": config.steps,
        "--batch": config.batch,
        "--device-batch": config.device_batch,
        "--log-every": config.log_every,
        "--keep": config.keep,
        "--channels": config.data.channels,
    }
    for name, value in counts.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} {value}: give a positive number")
    if config.data.range is not None and not config.data.range[0] < config.data.range[1]:
        low, high = config.data.range
        raise ValueError(f"--range {low:g} {high:g}: give the lower value first, as in --range 0 4095")
    if not 0 <= config.data.bad_limit <= 1:
        raise ValueError(f"--data.bad-limit {config.data.bad_limit}: give a fraction in [0, 1]")
    for name, interval in (("--save-every", config.save_every), ("--eval-every", config.eval_every)):
        try:
            parse_interval(interval or "1")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if config.budget:
        read_budget(config.budget)


def carry_out(plan: Plan) -> Run:
    """Train, evaluate on the way, and leave pictures in the run."""
    config, data, world = plan.config, plan.config.data, plan.world
    evaluate: Evaluate | None = None
    if plan.labelled is not None and world.first:
        online = Online(*plan.labelled, seed=config.seed)
        size = config.method.views[0].shape

        def judge(backbone: torch.nn.Module) -> dict[str, float]:
            assert isinstance(backbone, ViT)
            return online(
                backbone,
                size,
                data.mean,
                data.std,
                channels=data.channels,
                value_range=data.range,
                device=world.device,
            )

        evaluate = judge

    def first_batch(run: Run, batch: Batch, host: HostBatch) -> None:
        where = run.figures / "augmentations-000000.png"
        grids = config.method.grids()
        augmentations.draw(batch.views, where, mean=data.mean, std=data.std, masks=batch.masks, grids=grids)

    run = train(config, plan.source, world, plan.method, evaluate=evaluate, first_batch=first_batch, notes=plan.notes)
    if world.first:
        curves.draw(run.metrics(), run.figures / "curves.png")
    return run


def _fresh(
    recipe: str, data: str, options: Options, configure: Configure, out: Path, world: World
) -> tuple[RunConfig, Source]:
    make = find(recipe)
    check(configure(apply(options, make(Facts()))))  # what is misspelt is told before the data are looked at
    labels = options.labels or "auto"
    source = open_source(data, labels)
    seed, channels = options.seed or 0, options.channels or 3
    side, mean, std = survey(source, seed=seed, channels=channels, value_range=options.range)
    facts = Facts(len(source), side, channels, mean, std, world.device.type == "cuda")
    config = make(facts)
    holdout = bool(options.eval_every) and options.test is None and source.labels is not None
    where = dataclasses.replace(config.data, train=data, images=len(source), labels=labels, holdout=holdout)
    config = dataclasses.replace(config, data=where, out=str(out))
    return configure(apply(options, config)), source


def _continued(
    stored: RunConfig, recipe: str, data: str, options: Options, configure: Configure, world: World
) -> tuple[RunConfig, Source]:
    """An existing run decides; what is asked for now may differ only in what does not change results."""
    if options.precision == "auto":
        options = dataclasses.replace(options, precision=None)  # it was settled at the first start
    wanted = dataclasses.replace(configure(apply(options, stored)), recipe=recipe)
    if not _same_place(stored.data.train, data):
        wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, train=data))
    if options.device_batch is None and stored.device_batch and stored.batch % (stored.device_batch * world.size):
        wanted = dataclasses.replace(wanted, device_batch=None)  # more processes than before: found anew
    changed = compare(stored, wanted)
    if changed:
        longer = any(line.startswith(("steps:", "epochs:", "budget:")) for line in changed)
        cure = f"train on with --from {stored.out} and a new --out" if longer else "choose another --out"
        raise ValueError(f"{stored.out} belongs to another configuration; differing: {'; '.join(changed)}; {cure}")
    source = open_source(stored.data.train, stored.data.labels)
    if len(source) != stored.data.images:
        raise ValueError(
            f"{data} has {len(source)} images and had {stored.data.images} when {stored.out} began; "
            f"bring the same back, or choose another --out"
        )
    return wanted, source


def _same_place(a: str, b: str) -> bool:
    """Whether two DATA are one: `photos` and `photos/`, relative and absolute."""
    return a == b or (Path(a).exists() and Path(b).exists() and Path(a).samefile(b))


def apply(options: Options, config: RunConfig) -> RunConfig:
    """Put what was asked for in place of the recipe's values."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {name: value for name, value in given.items() if value is not None}
    lengths = [name for name in ("epochs", "steps", "budget") if name in given]
    if len(lengths) > 1:
        raise ValueError(f"--{lengths[0]} and --{lengths[1]} both say how long to train; give one")
    data = {name: given.pop(name) for name in ("test", "labels", "channels", "range") if name in given}
    if "from_" in given:
        given["init_from"] = given.pop("from_")
    given.pop("out", None)
    if lengths == ["budget"]:
        settled = config.steps if config.budget == given["budget"] else None
        given |= {"epochs": None, "steps": settled}
    elif lengths:
        given |= {"epochs": None, "steps": None, "budget": None} | {lengths[0]: given[lengths[0]]}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data), **given)
