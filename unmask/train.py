"""The loop, once, for every method.

`train` opens the run, finds the newest checkpoint and goes on from there; `step.update` is one optimizer
step. All randomness is a pure function of (seed, position) for data, views and masks and of (seed,
step, rank) for noise inside the network, and all schedules of the step. Hence the state of a run is
(weights, optimizer, step), and going on is exact.
"""

import contextlib
import dataclasses
import math
import os
import time
import traceback
from collections.abc import Callable, Sequence

import torch
from torch import nn

from . import checkpoint, parallel, passes, photometry_cpu
from .budget import fit_device_batch
from .compilation import compile_blocks, compiles, kernel_notes, optimizer_of
from .config import RunConfig, parse_interval
from .console import Console
from .data.sources import Source
from .data.stream import HostBatch, Stream
from .meter import Meter
from .methods.base import Batch, Method, Progress
from .parallel import World
from .randomness import fold
from .recompute import recompute
from .run import Run, last_kernels
from .signals import Stopped, StopSignals
from .step import Upload, share_hidden, update

Evaluate = Callable[[nn.Module], dict[str, float]]
FirstBatch = Callable[[Run, Batch, HostBatch], None]


def prepare(config: RunConfig, world: World, build: Callable[[], Method] | None = None) -> tuple[RunConfig, Method]:
    """Build the method with its first weights and settle what `auto` leaves open.

    Args:
        config: of the run.
        world: the processes.
        build: makes the method, where more than its configuration is needed (a borrowed tokenizer).
    """
    passes.switch(config.compile == "auto")
    torch.manual_seed(fold(config.seed, "init"))
    method: Method = (build or config.method.build)().to(world.device)
    precision = parallel.hardware_precision(world.device) if config.precision == "auto" else config.precision
    config = dataclasses.replace(config, precision=precision)
    if config.workers < 0:  # a CPU that trains has no more to spare; a GPU wants to be fed
        cores = os.cpu_count() or 1
        most = 2 if world.device.type == "cpu" else 16
        config = dataclasses.replace(config, workers=min(most, max(1, cores // world.size)))
    if config.device_batch is None:
        fits = fit_device_batch(
            method,
            config.method,
            config.data,
            config.batch,
            world,
            lambda: parallel.autocast(world.device, precision),
            config.recompute == "on",
        )
        config = dataclasses.replace(config, device_batch=fits)
    assert config.device_batch is not None
    if config.batch % (config.device_batch * world.size):
        raise ValueError(
            f"batch {config.batch} is not a multiple of device batch {config.device_batch} x {world.size} processes; "
            f"give a --batch that is, or leave --device-batch out"
        )
    recompute(method, config.recompute == "on")
    if config.device_batch % 2 and any(view.mix for view in config.method.views):
        raise ValueError(f"mixup pairs images, and a micro-batch of {config.device_batch} is odd; give even batches")
    return config, method


def total_steps(config: RunConfig, images: int) -> int:
    """Optimizer steps of the run: given, or epochs x images / batch."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, round(config.epochs * images / config.batch))


def train(
    config: RunConfig,
    source: Source,
    world: World,
    prepared: Method,
    *,
    evaluate: Evaluate | None = None,
    first_batch: FirstBatch | None = None,
    notes: Sequence[str] = (),
) -> Run:
    """Train, or go on training, until the last step.

    Args:
        config: resolved by `prepare`.
        source: the training images.
        prepared: the method that `prepare` built.
        evaluate: called on the backbone and its companions at every `eval_every` and at the end, on rank 0.
        first_batch: called once with the first batch of a fresh run, on rank 0.
        notes: lines to say before the first step.
    Returns:
        the run, with a checkpoint of the last step.
    Raises:
        meter.Diverged: the loss or gradient is not finite; nothing of it is saved.
        Stopped: a signal asked to stop; the state is saved.
        parallel.Lost: another process is gone, or did not answer in time.
        checkpoint.SaveFailed: the disk refused a checkpoint; the last one is intact.
    """
    run = Run.open(config, world)
    try:
        return _train(run, config, source, world, prepared, evaluate, first_batch, notes)
    except Stopped:
        raise
    except Exception as error:
        if world.size > 1:
            run.report_failure(world.rank, traceback.format_exc())
        if parallel.is_lost(error):
            raise parallel.Lost(
                f"rank {world.rank} of {world.size} lost another process, or waited {parallel.WAITING} for it "
                f"({str(error).strip().splitlines()[0]}); look for the first cause in {run.path}/errors-rank*.txt and "
                f"in what the others said; the same command goes on from step {run.latest() or 0}"
            ) from error
        raise
    finally:
        run.release()


def _train(
    run: Run,
    config: RunConfig,
    source: Source,
    world: World,
    prepared: Method,
    evaluate: Evaluate | None,
    first_batch: FirstBatch | None,
    notes: Sequence[str],
) -> Run:
    console = Console(world.first, run.path / "log.txt")
    last = last_kernels(run.path) if world.first else []
    for line in (*notes, *kernel_notes(config, world, last)):
        console.say(line)
    engine = parallel.wrap(prepared, world, config.parallel)
    method = parallel.unwrap(engine)
    optimizer = optimizer_of(method, config, world)
    steps = total_steps(config, len(source))
    start = run.latest() or 0
    if start:
        checkpoint.load(run.path, start, method, optimizer)
        console.say(f"continuing {run.path} at step {start} of {steps}")
    if world.first:
        run.rewind(start)
    if start >= steps:
        console.say(f"{run.path} is finished: {steps} steps are done; train longer with --from {run.path}")
        return run
    if compiles(config, world, steps - start):
        compile_blocks(method, whole=world.size == 1 and config.recompute == "off")

    stream, upload = stream_of(config, source, world, start, steps), Upload(config, world.device)
    for line in stream.notes:
        console.say(line)
    save_due, eval_due = Due(config.save_every, start), Due(config.eval_every, start)
    meter = Meter(world, config.batch)
    bad = run.bad_images() if start else {}
    lines: list[dict[str, float]] = []  # of this start, after the warm-up
    warned = ""
    steps_per_epoch = len(source) / config.batch
    (evaluates,) = world.agree(evaluate is not None)  # all ranks come to an evaluation that rank 0 makes

    def save(step: int) -> None:
        meter.check_finite(run)
        checkpoint.save(run.path, step, method, optimizer, world, config.keep)

    engine.train()
    with (
        StopSignals() as signals,
        contextlib.closing(iter(stream)) as batches_of,
        console.bar(config.recipe, steps, start) as bar,
    ):
        for step in range(start, steps):
            at = Progress(step, steps, steps_per_epoch)
            with meter.waiting():
                hosts = next(batches_of)
            batches = upload(hosts)
            share_hidden(batches, world)
            if step == 0 and first_batch is not None and world.first:
                first_batch(run, batches[0], hosts[0])
            with meter.stepping():
                result = update(engine, optimizer, batches, at, config, world)
            meter.add(step, *result)

            done = step + 1
            skipped = {key: why for host in hosts for key, why in host.bad if key not in bad}
            stop, save_now, eval_now, any_skipped = world.agree(
                bool(signals.asked), save_due(done), eval_due(done), bool(skipped)
            )
            if any_skipped:
                collect_bad(bad, skipped, run, config, len(source), world)
            if done % config.log_every == 0 or done == steps:
                line = meter.report(run, optimizer, done, steps_per_epoch)
                if config.optim.warm(at) and not warned:
                    lines.append(line)
                    warned = method.warning(lines) or ""
                    if warned:
                        console.warn(f"step {done}: {warned}")
                bar.at(done, f"loss {line['loss']:.4f}  {line['img/s']:.0f} img/s")
            if evaluates and (eval_now or (done == steps and config.eval_every)):
                meter.check_finite(run)
                scores = evaluate_networks(method, evaluate, world)
                if world.first:
                    run.log(step=done, epoch=done / steps_per_epoch, images=done * config.batch, **scores)
                    console.say(f"step {done}: " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()))
                engine.train()
                eval_due.restart()
                meter.restart()
            if save_now or stop or done == steps:
                save(done)
                save_due.restart()
                meter.restart()
            if stop and done < steps:
                raise Stopped(
                    f"{signals.asked or 'a signal'} at step {done} of {steps}, saved to {run.path}; "
                    f"the same command continues it"
                )
    console.say(f"done: {steps} steps, loss {meter.last_loss:.4f}, saved to {run.path}")
    return run


def stream_of(config: RunConfig, source: Source, world: World, start: int, steps: int) -> Stream:
    """Open this rank's batches of a run, from step `start` on."""
    assert config.device_batch is not None
    return Stream(
        source,
        views=config.method.views,
        masks=config.method.masks,
        grids=config.method.grids(),
        seed=config.seed,
        batch=config.batch,
        device_batch=config.device_batch,
        rank=world.rank,
        world=world.size,
        start=start,
        steps=steps,
        workers=config.workers,
        channels=config.data.channels,
        value_range=config.data.range,
        render=photometry_cpu.does(config.data.channels, world.device),
        pin=world.device.type == "cuda",
    )


def collect_bad(
    bad: dict[str, str], skipped: dict[str, str], run: Run, config: RunConfig, images: int, world: World
) -> None:
    """Add what any rank skipped to the run's list; stop, on all ranks, when it is more than the limit."""
    for each in world.gather(skipped):
        bad.update(each)
    if world.first:
        run.report_bad(bad)
    if len(bad) > config.data.bad_limit * images:
        key, why = next(reversed(bad.items()))
        raise ValueError(
            f"{len(bad)} of {images} images cannot be read, over the limit of {config.data.bad_limit:.1%}; "
            f"the last is {key}: {why}. They are listed in {run.path / 'bad-files.txt'}; "
            f"remove them, or allow more with --data.bad-limit"
        )


def evaluate_networks(method: Method, evaluate: Evaluate | None, world: World) -> dict[str, float]:
    """Evaluate on rank 0 while the others wait; sharded weights are gathered first.

    Returns:
        the backbone's scores, and those of its companions with their name behind: `eval/knn/cls/student`.
    """
    scores: dict[str, float] = {}
    for name, network in {"": method.backbone(), **method.companions()}.items():
        if parallel.is_sharded(network):
            network = parallel.full_copy(network, type(network)(network.config).to(world.device))
        found = evaluate(network) if world.first and evaluate is not None else {}
        scores |= {f"{score}/{name}" if name else score: value for score, value in found.items()}
    world.wait()
    return scores


class Due:
    """Whether an interval of steps, or of time since the last `restart`, has passed."""

    def __init__(self, interval: str | None, start: int):
        self.unit, self.length = parse_interval(interval) if interval else ("steps", math.inf)
        self.start = start
        self.restart()

    def restart(self) -> None:
        """What was due has been done, on every rank."""
        self.since = time.monotonic()

    def __call__(self, step: int) -> bool:
        if self.unit == "steps":
            return step > self.start and step % self.length == 0
        return time.monotonic() - self.since >= self.length
