"""`unmask pretrain`: from a recipe's name and a folder of images to a finished, pictured run."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from . import checkpoint, parallel
from .config import RunConfig
from .console import Console
from .data.sources import Source, holdout_split, open_source
from .data.stream import HostBatch
from .data.survey import survey
from .evaluate import LabelFree, Online
from .forecast import describe, steps_for
from .methods.base import Batch, Method
from .methods.dvae import DVAEConfig
from .models import parse_run
from .options import Options, apply, check
from .parallel import World
from .recipes import Facts, find, name_of
from .run import Run, compare
from .show import augmentations, curves
from .stages import examine, first_stage, held_out_images, keep_tokenizer
from .train import Evaluate, prepare, train
from .vit import ViT

Configure = Callable[[RunConfig], RunConfig]
"""changes a resolved configuration: how dotted names on the command line arrive"""


HELD = "holdout.npy"
"""the places of the held-out images, in a run that has some"""
PLAIN = {"step", "epoch", "images", "loss", "grad_norm", "lr", "img/s", "data_wait", "outside_step", "memory_gb"}
"""what every method logs; the rest is a method's own health, drawn below the loss"""


class Plan(NamedTuple):
    """Everything that is settled before the first step."""

    config: RunConfig
    source: Source
    """the images to train on"""
    labelled: tuple[Source, Source] | None
    """images to evaluate with while training: to learn from, to test"""
    held: np.ndarray | None
    """which images are held out of training; kept with the run"""
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
    asked = both_stages(recipe, data, Options(**options))
    with planned(recipe, data, asked, configure) as plan:
        return carry_out(plan)


def both_stages(recipe: str, data: str, options: Options) -> Options:
    """Train BEiT's tokenizer, or go on with it, where the recipe needs one that is not there yet.

    Returns:
        the options of the second stage; for every other recipe, those that were given.
    """
    recipe = name_of(find(recipe))
    out = options.out or Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    first = first_stage(recipe, {name: value for name, value in given.items() if value is not None}, out)
    if first is None:
        return options
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{recipe} has no tokenizer, and with several processes the stages are two commands: "
            f"torchrun ... pretrain {first['recipe']} DATA --out TOKENIZER, then --tokenizer TOKENIZER"
        )
    tokenizer = pretrain(first.pop("recipe"), data, **first)
    return dataclasses.replace(options, out=out, tokenizer=str(tokenizer.path))


@contextmanager
def planned(recipe: str, data: str, options: Options, configure: Configure | None = None) -> Iterator[Plan]:
    """Settle a run without starting it; on leaving, the process group is left too."""
    world = parallel.start(options.device or _device_of(options.out))
    try:
        yield settle(recipe, data, options, configure or (lambda config: config), world)
    finally:
        parallel.stop(world)


def _device_of(out: Path | None) -> str:
    """Where a run that is continued was trained; auto for a new one."""
    return Run(out).config.device if out is not None and (out / "config.json").exists() else "auto"


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
    if len(config.data.mean) != config.data.channels or len(config.data.std) != config.data.channels:
        raise ValueError(
            f"{config.data.channels} channels, but mean and std of {len(config.data.mean)}; give --channels "
            f"{config.data.channels}, so that they are measured, not --data.channels"
        )
    labelled, held, held_out = None, None, None
    if config.data.holdout:  # what was held out stays so, also when --eval-every is no longer asked for
        held = np.load(out / HELD) if (out / HELD).exists() else None
        source, held_out = holdout_split(source, held)
        held = held_out.index
    if config.eval_every and (config.data.test or held_out is not None or source.labels is not None):
        test = open_source(config.data.test, config.data.labels) if config.data.test else held_out
        if test is None:
            raise ValueError(
                f"--eval-every needs labelled images and none of {config.data.train} are held out; "
                f"give --test DATA, or leave --eval-every out"
            )
        labelled = (source, test)
    budget = config.budget if config.steps is None and config.epochs is None else None
    config, method = prepare(config, world)
    if budget:
        steps = steps_for(budget, config, source, method, world)
        config, method = prepare(dataclasses.replace(config, steps=steps), world)  # measuring moved the weights
    notes = []
    if config.data.test and not config.eval_every:
        notes.append(f"--test {config.data.test} is looked at with --eval-every only")
    if config.eval_every and labelled is None:
        notes.append("no labels: --eval-every logs what needs none (RankMe, LiDAR, alignment, uniformity)")
    if config.init_from and fresh:
        config = dataclasses.replace(config, init_from=start_from(config.init_from, method))
        notes.append(f"weights from {config.init_from}")
    return Plan(config, source, labelled, held, method, world, notes + describe(config, source, method, world))


def start_from(spec: str, method: Method) -> str:
    """Give a method the weights of a run, all of them.

    Returns:
        RUN@STEP: which they were.
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
    return f"{run.path}@{at}"


def carry_out(plan: Plan) -> Run:
    """Train, evaluate on the way, and leave pictures in the run."""
    config, data, world = plan.config, plan.config.data, plan.world
    evaluate: Evaluate | None = None
    is_tokenizer = isinstance(config.method, DVAEConfig)
    if plan.labelled is not None and world.first and is_tokenizer:
        examined = held_out_images(plan.labelled[1], config).to(world.device)
        evaluate = partial(examine, images=examined)
    elif config.eval_every and world.first:
        online = Online(*plan.labelled, seed=config.seed) if plan.labelled else LabelFree(plan.source, seed=config.seed)
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
        if plan.held is not None:
            np.save(run.path / HELD, plan.held)
        augmentations.draw(batch.views, where, mean=data.mean, std=data.std, masks=batch.masks, grids=grids)

    run = train(config, plan.source, world, plan.method, evaluate=evaluate, first_batch=first_batch, notes=plan.notes)
    if world.first:
        metrics = run.metrics()
        more = [name for name in (metrics[-1] if metrics else {}) if name not in PLAIN and "/" not in name]
        curves.draw(metrics, run.figures / "curves.png", more=more)
        if is_tokenizer:
            held_out = plan.labelled[1] if plan.labelled else plan.source
            for warning in keep_tokenizer(run, held_out):
                Console(log=run.path / "log.txt").warn(warning)
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
    judged = source.labels is not None or isinstance(config.method, DVAEConfig)  # a tokenizer needs no labels
    holdout = bool(options.eval_every) and options.test is None and judged
    where = dataclasses.replace(config.data, train=data, images=len(source), labels=labels, holdout=holdout)
    config = dataclasses.replace(config, data=where, out=str(out))
    return configure(apply(options, config)), source


def _continued(
    stored: RunConfig, recipe: str, data: str, options: Options, configure: Configure, world: World
) -> tuple[RunConfig, Source]:
    """An existing run decides; what is asked for now may differ only in what does not change results."""
    if options.from_ and stored.init_from and options.from_ == stored.init_from.rpartition("@")[0]:
        options = dataclasses.replace(options, from_=stored.init_from)  # its newest step, when the run began
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
