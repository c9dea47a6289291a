"""A run that goes on for a while, watched step by step: what averaging and target noise need.

Stored checkpoints are too far apart to see the noise of single steps. The real step function goes on from
one of them, in memory, with the learning rate and weight decay as they were there; what is watched is
added up on the way, so that not one student needs to be kept: an EMA of any momentum, the mean of all, and
their spread are exact in one pass.
"""

import dataclasses
from collections.abc import Iterator

import torch

from .. import checkpoint
from ..config import OptimConfig
from ..data.record import Source
from ..methods.base import Progress
from ..methods.ibot import IBOT
from ..optim import build_optimizer
from ..parallel import World
from ..schedules import StepCosine
from ..step import share_hidden, to_device, update
from ..train import stream_of
from .subject import Ask, Subject

LEAST = 0.01
"""fraction of the peak rate below which students hardly move, and there is no noise to average"""


def moves(optim: OptimConfig, batch: int, at: Progress) -> bool:
    """Whether the learning rate is large enough there for students to move."""
    return optim.lr_schedule(batch)(at) >= LEAST * optim.lr(batch)


def frozen(optim: OptimConfig, batch: int, at: Progress) -> OptimConfig:
    """The same optimizer with the rate and the weight decay of one moment, for good.

    Raises:
        ValueError: the rate is nearly 0 there.
    """
    rate, decay = optim.lr_schedule(batch)(at), optim.weight_decay_schedule()(at)
    if not moves(optim, batch, at):
        raise ValueError(
            f"the learning rate at step {at.step} of {at.steps} is {rate:.2g}, under {LEAST:.0%} of its peak "
            f"{optim.lr(batch):.2g}: students would not move; choose an earlier checkpoint, RUN@STEP"
        )
    return dataclasses.replace(
        optim, schedule="constant", base_lr=rate, base_batch=None, weight_decay=decay, weight_decay_end=None
    )


def momentum(subject: Subject) -> float:
    """The momentum of a run's teacher at these weights."""
    assert isinstance(subject.method, IBOT)
    config = subject.method.config
    return StepCosine(config.momentum, 0.0, config.momentum_end)(subject.at())


def continued(subject: Subject, source: Source, ask: Ask, what: str) -> Iterator[IBOT]:
    """Go on with a run from its checkpoint for `ask.steps` steps; the run's directory stays as it is.

    The teacher's momentum stays as it was there, too, so that a continuation has one; temperatures keep to
    their schedules.

    Args:
        subject: an iBOT or DINO run.
        source: images to train on.
        ask: the request.
        what: the analysis, for messages.
    Yields:
        the method in training mode before the first step, then after every one; it moves on with the next.
    Raises:
        ValueError: not such a run, or its learning rate is nearly 0 there.
    """
    subject.of(what, IBOT)
    run, at, config = subject.trained(what), subject.at(), subject.config
    m = momentum(subject)
    config = dataclasses.replace(
        config,
        method=dataclasses.replace(config.method, momentum=m, momentum_end=m),
        optim=frozen(config.optim, config.batch, at),
        workers=min(config.workers, 1),
    )
    if config.device_batch is None:
        config = dataclasses.replace(config, device_batch=config.batch)
    if config.precision == "auto":
        config = dataclasses.replace(config, precision="fp32")
    world = World(0, 1, subject.device)
    method = config.method.build().to(subject.device)
    optimizer = build_optimizer(method.parameter_groups(), config.optim)
    checkpoint.load(run.path, subject.step, method, optimizer, single=True)
    method.train()
    yield method
    first = subject.step
    for i, hosts in enumerate(stream_of(config, source, world, first, first + ask.steps)):
        batches = [to_device(host, config, subject.device) for host in hosts]
        share_hidden(batches, world)
        update(method, optimizer, batches, Progress(first + i, at.steps, len(source) / config.batch), config, world)
        method.train()
        if not torch.isfinite(method.center).all():
            raise ValueError(f"{what}: the continuation diverged at step {first + i}")
        yield method
