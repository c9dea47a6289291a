"""`unmask pretrain`: from a recipe's name and a folder of images to a finished, pictured run."""

import dataclasses
import json
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
from .allocator import keep_memory
from .borrow import shaped, start_from
from .config import RunConfig
from .console import Console
from .data.classes import class_names
from .data.sources import Source, Way, holdout_places, holdout_split, holdout_way, open_source, same_place
from .data.stream import HostBatch
from .data.survey import survey
from .evaluate import EvalModel, LabelFree, Online, classify, renumbered, top1
from .evaluate.shots import few
from .forecast import describe, steps_for
from .methods.base import Batch, Method
from .methods.beit import BEiT
from .methods.classify import ClassifyConfig
from .methods.codec import Codec
from .methods.dvae import DVAEConfig
from .models import names_run, read_weights
from .options import Options, apply, check
from .parallel import World
from .pictures import draw_tokens
from .recipes import Facts, find, name_of
from .run import CLASSES, Run, changed_fields, held_in, keep_held
from .show import augmentations, curves
from .stages import (
    RECORD,
    check_tokenizer,
    examine,
    first_stage,
    held_out_images,
    keep_tokenizer,
    length_of_each,
    predicted,
    second_stage,
    tokenizer_record,
    with_borrowed_tokenizer,
    with_tokenizer_of,
    write_record,
)
from .train import Evaluate, prepare, train
from .vit import ViT

Configure = Callable[[RunConfig], RunConfig]
"""changes a resolved configuration: how dotted names on the command line arrive"""
ENOUGH = 100
"""images from which on a tenth is held out for a recipe that evaluates without being asked; of few it may be none"""


class Plan(NamedTuple):
    """Everything that is settled before the first step."""

    config: RunConfig
    source: Source
    """the images to train on"""
    labelled: tuple[Source, Source] | None
    """images to evaluate with while training: to learn from, to test"""
    held: np.ndarray | None
    """which images are held out of training; kept with the run"""
    classes: list[str] | None
    """names of the classes that are learned, by label; kept with the run"""
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
    with planned(recipe, data, Options(**options), configure) as plans:
        return [carry_out(plan) for plan in plans][-1]


@contextmanager
def planned(recipe: str, data: str, options: Options, configure: Configure | None = None) -> Iterator[Iterator[Plan]]:
    """Settle a run, stage by stage, without starting it; on leaving, the process group is left too."""
    keep_memory()  # before the first step is measured; loader workers inherit it
    world = parallel.start(options.device or _device_of(options.out))
    try:
        yield stages_of(recipe, data, options, configure or (lambda config: config), world)
    finally:
        parallel.stop(world)


def stages_of(recipe: str, data: str, options: Options, configure: Configure, world: World) -> Iterator[Plan]:
    """The plan of each stage, to be carried out before the next is asked for (or left, by a dry run).

    One for every recipe but BEiT without a tokenizer, which trains its own first, under RUN/tokenizer.
    """
    recipe = name_of(find(recipe))
    if options.out is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ValueError("--max-restarts without --out: restarted processes would begin another run; give --out RUN")
    (where, *_) = world.gather(str(options.out or Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"))
    out = Path(where)  # the clocks of ranks may differ
    options = dataclasses.replace(options, out=out)
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {name: value for name, value in given.items() if value is not None}
    first = first_stage(recipe, given, out)
    if first is not None:
        last, _ = _fresh(recipe, data, options, configure, out, world)
        with torch.device("meta"):  # what cannot be is refused now, not after the first stage
            last.method.build()
        plan = settle(first.pop("recipe"), data, Options(**first), lambda config: config, world)
        said = [f"no --tokenizer: training one first, stage 1 of 2, under {out}/tokenizer", *length_of_each(given)]
        yield plan._replace(notes=[*said, *plan.notes])
        world.wait()  # rank 0 has written the tokenizer
    yield settle(recipe, data, dataclasses.replace(options, **second_stage(recipe, given, out)), configure, world)


def _device_of(out: Path | None) -> str:
    """Where a run that is continued was trained, or its first stage; auto for a new one."""
    begun = [run for run in (out, out / "tokenizer") if (run / "config.json").exists()] if out is not None else []
    return Run(begun[0]).config.device if begun else "auto"


def settle(recipe: str, data: str, options: Options, configure: Configure, world: World) -> Plan:
    """Turn a recipe, data and options into a Plan; an existing run gives its own configuration."""
    assert options.out is not None
    out = options.out
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
    classes = class_names(source) if isinstance(config.method, ClassifyConfig) else None
    if isinstance(config.method, ClassifyConfig) and classes is not None and len(classes) != config.method.vit.classes:
        raise ValueError(
            f"{config.data.train} has {len(classes)} classes and the head {config.method.vit.classes}; "
            f"leave --method.vit.classes out, or give it {len(classes)}"
        )
    labelled, held, held_out = None, None, None
    if config.data.holdout:  # what was held out stays so, also when --eval-every is no longer asked for
        held = _held(out, source, config.data.holdout_by, world)
        source, held_out = holdout_split(source, held)
    tokenizes = isinstance(config.method, DVAEConfig)  # is judged without labels, on training images if need be
    judged = source.labels is not None and not tokenizes
    if config.eval_every and (config.data.test or held_out is not None or judged):
        test = open_source(config.data.test, config.data.labels) if config.data.test else held_out
        if test is None:
            where = f"none of {config.data.train} are held out"
            raise ValueError(f"--eval-every needs labelled images and {where}; give --test DATA, or leave it out")
        if classes is not None and test.labels is not None:
            renumbered(np.asarray(test.labels), test, classes)  # a class that is not learned is told now
        labelled = (source, test)
    budget = config.budget if config.steps is None and config.epochs is None else None
    build = with_borrowed_tokenizer(config) if fresh else None
    config, method = prepare(config, world, build)
    if budget:
        steps = steps_for(budget, config, source, method, world)
        config, method = prepare(dataclasses.replace(config, steps=steps), world, build)  # measuring moved the weights
    notes = predicted(config.method)
    if config.data.test and not config.eval_every:
        notes.append(f"--test {config.data.test} is looked at with --eval-every only")
    if config.eval_every and labelled is None and not tokenizes:
        notes.append("no labels: --eval-every logs what needs none (RankMe, LiDAR, alignment, uniformity)")
    if config.init_from and fresh:
        name, said = start_from(config.init_from, method, options.heads)
        config = dataclasses.replace(config, init_from=name)
        notes += [f"weights from {name}", *said]
    notes += describe(config, source, method, world)
    return Plan(config, source, labelled, held, classes, method, world, notes)


def _held(out: Path, source: Source, way: Way, world: World) -> np.ndarray:
    """The places to hold out: those that the run has had, or chosen now. One rank may read all bytes, and tells."""
    mine = None
    if world.first:
        before = held_in(out)
        mine = holdout_places(source, way) if before is None else before
    (held, *_) = world.gather(mine)
    return held


def carry_out(plan: Plan) -> Run:
    """Train, evaluate on the way, and leave pictures in the run."""
    config, data, world = plan.config, plan.config.data, plan.world
    evaluate: Evaluate | None = None
    unseen = plan.labelled[1] if plan.labelled else plan.source  # what is held out, where something is
    if config.eval_every and world.first and isinstance(config.method, DVAEConfig):
        examined = held_out_images(unseen, config).to(world.device)
        evaluate = partial(examine, images=examined, temperature=config.method.temperature.end)
    elif plan.labelled is not None and world.first and plan.classes is not None:
        evaluate = partial(recognized, test=plan.labelled[1], classes=plan.classes, config=config, device=world.device)
    elif config.eval_every and world.first:
        online = Online(*plan.labelled, seed=config.seed) if plan.labelled else LabelFree(plan.source, seed=config.seed)
        size = config.method.views[0].shape

        def judge(backbone: torch.nn.Module) -> dict[str, float]:
            assert isinstance(backbone, ViT)
            model = EvalModel("backbone", backbone, size, data.mean, data.std, data.channels, data.range)
            return online(model, device=world.device)

        evaluate = judge

    record = None  # before the weights are sharded
    if world.first and isinstance(plan.method, BEiT) and not (Path(config.out) / RECORD).exists():
        record = tokenizer_record(plan.method, unseen, config)

    def first_batch(run: Run, batch: Batch, host: HostBatch) -> None:
        where = run.figures / "augmentations-000000.png"
        grids = config.method.grids()
        if plan.held is not None:
            keep_held(run.path, plan.held)
        if plan.classes is not None:
            checkpoint.write_atomically(run.path / CLASSES, json.dumps(plan.classes, indent=1) + "\n")
        augmentations.draw(batch.views, where, mean=data.mean, std=data.std, masks=batch.masks, grids=grids)
        if record:
            warn(run, write_record(run, record))

    run = train(config, plan.source, world, plan.method, evaluate=evaluate, first_batch=first_batch, notes=plan.notes)
    if world.first:
        curves.draw(run.metrics(), run.figures / "curves.png")
        if isinstance(config.method, DVAEConfig):
            warn(run, keep_tokenizer(run, unseen))
        codec = getattr(plan.method, "tokenizer", None)  # a dVAE's is a method, of one's own may be anything
        if isinstance(config.method, DVAEConfig) or isinstance(codec, Codec):
            draw_tokens(run, None, unseen, run.figures / "tokens.png", count=6)
    return run


def warn(run: Run, warnings: list[str]) -> None:
    """Say what went wrong, and keep it in the run's log."""
    for warning in warnings:
        Console(log=run.path / "log.txt").warn(warning)


def recognized(
    backbone: torch.nn.Module, test: Source, classes: list[str], config: RunConfig, device: torch.device
) -> dict[str, float]:
    """What part of the test images a network with labels recognizes."""
    assert isinstance(backbone, ViT)
    data = config.data
    said = classify(backbone, test, mean=data.mean, std=data.std, value_range=data.range, device=device)
    truth = renumbered(said.labels, test, classes)
    known = truth >= 0
    return {"eval/top1": top1(said.probabilities.argmax(1)[known], truth[known])}


def _fresh(
    recipe: str, data: str, options: Options, configure: Configure, out: Path, world: World
) -> tuple[RunConfig, Source]:
    make = find(recipe)
    early = configure(apply(options, make(Facts())))
    check(early)  # what is misspelt is told before the data are looked at
    labels = options.labels or "auto"
    whole = open_source(data, labels)
    source = few(whole, early.data.shots, early.seed)
    seed, channels = options.seed or 0, options.channels or 3
    classes = len(class_names(source)) if isinstance(make(Facts()).method, ClassifyConfig) else 0
    side, mean, std = survey(source, seed=seed, channels=channels, value_range=options.range)
    facts = Facts(len(source), side, channels, mean, std, world.device.type == "cuda", classes)
    config = make(facts)
    if options.from_ and "-" not in recipe and not names_run(options.from_):  # the recipe sizes itself
        config = shaped(config, read_weights(options.from_, options.heads))
    if options.from_ and options.tokenizer is None:
        config = dataclasses.replace(config, method=with_tokenizer_of(config.method, options.from_))
    judged = source.labels is not None or isinstance(config.method, DVAEConfig)  # a tokenizer needs no labels
    asked = options.eval_every or (config.eval_every and len(source) >= ENOUGH)
    holdout = bool(asked) and options.test is None and judged
    where = dataclasses.replace(config.data, train=data, images=len(source), labels=labels, holdout=holdout)
    where = dataclasses.replace(where, holdout_by=holdout_way(whole)) if holdout else where
    where = where if source is whole else dataclasses.replace(where, drawn_from=len(whole))
    config = apply(options, dataclasses.replace(config, data=where, out=str(out)))
    wanted = configure(config)
    check_tokenizer(config.method, wanted.method)
    return wanted, source


def _continued(
    stored: RunConfig, recipe: str, data: str, options: Options, configure: Configure, world: World
) -> tuple[RunConfig, Source]:
    """An existing run decides; what is asked may differ from it only in what does not change results."""
    if options.from_ and stored.init_from and options.from_ == stored.init_from.rpartition("@")[0]:
        options = dataclasses.replace(options, from_=stored.init_from)  # its newest step, when the run began
    if options.precision == "auto":
        options = dataclasses.replace(options, precision=None)  # it was settled at the first start
    wanted = dataclasses.replace(configure(apply(options, stored)), recipe=recipe)
    if not same_place(stored.data.train, data):
        wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, train=data))
    if options.device_batch is None and stored.device_batch and stored.batch % (stored.device_batch * world.size):
        wanted = dataclasses.replace(wanted, device_batch=None)  # more processes than before: found anew
    changed = changed_fields(stored, wanted)
    if changed:
        longer = any(line.startswith(("steps:", "epochs:", "budget:")) for line in changed)
        cure = f"train on with --from {stored.out} and a new --out" if longer else "choose another --out"
        raise ValueError(f"{stored.out} belongs to another configuration; differing: {'; '.join(changed)}; {cure}")
    whole = open_source(stored.data.train, stored.data.labels)
    if len(whole) != (before := stored.data.drawn_from or stored.data.images):
        raise ValueError(
            f"{data} has {len(whole)} images and had {before} when {stored.out} began; "
            f"bring the same back, or choose another --out"
        )
    return wanted, few(whole, stored.data.shots, stored.seed)
