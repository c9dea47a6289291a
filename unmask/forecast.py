"""What a run will do and cost: its arithmetic in words, and a few of its own steps, measured and not kept."""

import copy
import math
import re
import time
from typing import Literal, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from . import parallel, photometry_cpu
from .budget import activation_bytes, synthetic_batch
from .compilation import optimizer_of
from .config import RunConfig
from .console import duration
from .data.decode import decode, simplejpeg
from .data.sources import BadImage, Source
from .data.survey import Kinds, kinds
from .methods.base import Method, Progress
from .parallel import World
from .randomness import shuffled_index
from .step import to_device, update
from .train import stream_of, total_steps
from .views import expand, skipped_operations

MOST = 1000
"""optimizer steps that a measurement takes at most"""
LOOK = 500
"""images that a dry run tries to decode"""
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def millions(count: int) -> str:
    """A number of parameters for people.

    Example:
        >>> millions(86_567_656), millions(24_800)
        ('86.6 M', '0.025 M')
    """
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e6:.2g} M"


def describe(config: RunConfig, source: Source, method: Method, world: World) -> list[str]:
    """The first lines of a run: the arithmetic of what will happen."""
    assert config.device_batch is not None
    steps, accumulate = total_steps(config, len(source)), config.batch // (config.device_batch * world.size)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    backbone = sum(p.numel() for p in method.backbone().parameters())
    optim = config.optim
    rate = f"{optim.base_lr:g}"
    if optim.base_batch is not None:
        rate += f" x {config.batch} / {optim.base_batch} = {optim.lr(config.batch):.3g}"
    data, length = config.data, steps * config.batch / len(source)
    lines = [
        f"{config.recipe}: {millions(trained)} trained parameters, {millions(backbone)} in the backbone",
        f"{len(source):,} images of {data.train}, mean {_short(data.mean)}, std {_short(data.std)}",
        f"batch {config.device_batch} x {world.size} devices x {accumulate} micro-batches = {config.batch}, lr {rate}",
        f"{steps:,} steps, {length:.4g} epochs on {world.device} in {config.precision}, to {config.out}",
    ]
    seen = kinds(source, seed=config.seed) if world.first else Kinds(jpeg=False, deep=False)  # others say nothing
    if data.channels != 3:
        lines.append(f"images of {data.channels} channels" if data.channels > 1 else "gray images")
    if seen.deep or data.range is not None:
        levels = "each file's own extremes" if data.range is None else f"--range {data.range[0]:g} {data.range[1]:g}"
        lines.append(f"values of more than 8 bits are scaled by {levels}")
    skipped = {name for view in expand(config.method.views) for name in skipped_operations(view, config.data.channels)}
    if skipped:
        lines.append(f"left out, as they need RGB: {', '.join(sorted(skipped))}")
    colored = any(v.jitter or v.blur or v.gray or v.solarize for v in config.method.views)
    slow = []
    if seen.jpeg and data.channels in (1, 3) and simplejpeg is None:
        slow.append("JPEGs are decoded by torchvision, which simplejpeg does faster")
    if colored and (data.channels, world.device.type) == (3, "cpu") and not photometry_cpu.does(3, world.device):
        slow.append("colors are rendered by torch, which OpenCV does five times faster")
    if slow:
        lines.append(f"{'; '.join(slow)}: pip install 'unmask[fast]'")
    lines += config.method.traps(length)
    if data.shots:
        what = f"{data.shots} of the labels" if "%" in data.shots else f"{data.shots} a class"
        lines.append(
            f"--shots {data.shots}: {data.images:,} of {data.drawn_from:,} images, {what}, by seed {config.seed}"
        )
    if data.holdout and data.holdout_by == "content":
        lines.append("one tenth of the images, chosen by content, is held out of training for --eval-every")
    elif data.holdout:
        held = f"{data.images - len(source):,} of {data.images:,} images, drawn by place"
        lines.append(f"{held}, are held out of training for --eval-every; --data.holdout-by content reads all bytes")
    return lines


def _short(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.3f}" for v in values) + ")"


class Cost(NamedTuple):
    """What a dry run tells."""

    steps: int
    seconds_per_step: float
    hours: float
    disk_gb: float
    """of the checkpoints that are kept, and the one being written"""
    memory_gb: float
    """weights, gradients, optimizer and activations, on each device"""
    looked: int
    """images that were tried"""
    bad: list[str]
    """those of them that cannot be read, with the reason"""

    def lines(self) -> list[str]:
        bad = f"{len(self.bad)} of {self.looked} images looked at cannot be read"
        return [
            f"{self.steps:,} steps of {self.seconds_per_step:.3g} s: {duration(3600 * self.hours)}",
            f"about {self.memory_gb:.2g} GB of memory a device, {self.disk_gb:.2g} GB of disk for checkpoints",
            bad + (f", first {self.bad[0]}" if self.bad else ""),
        ]


def cost_of(config: RunConfig, source: Source, method: Method, world: World) -> Cost:
    """Measure a few steps and look at some images."""
    seconds = measure(config, source, method, world)
    steps = total_steps(config, len(source))
    precision = "bf16" if config.precision == "bf16" else "fp32"

    def context() -> torch.autocast:
        return parallel.autocast(world.device, precision)

    probe = synthetic_batch(config.method, config.data, 2, world.device)
    assert config.device_batch is not None
    activations = activation_bytes(method, probe, context, config.recompute == "on") * config.device_batch
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in method.parameters()) - trained
    state = 12 * trained + 4 * frozen  # weights and Adam's two averages, in fp32
    bad = []
    looked = min(LOOK, len(source))
    for i in range(looked):
        try:
            record = source[shuffled_index(i, len(source), config.seed, 0)]
            decode(record, channels=config.data.channels, value_range=config.data.range)
        except BadImage as error:
            bad.append(str(error))
    return Cost(
        steps=steps,
        seconds_per_step=seconds,
        hours=steps * seconds / 3600,
        disk_gb=state * (config.keep + 1) / 1e9,
        memory_gb=(state + 4 * trained + activations) / 1e9,
        looked=looked,
        bad=bad,
    )


def read_budget(budget: str) -> tuple[float, Literal["seconds", "images", "gflop"]]:
    """Read `30s`, `20m`, `2h`, `500000 images` or `1e6 gflop`.

    Raises:
        ValueError: the budget is none of these, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9.eE+]+)\s*(s|m|h|images?|gflops?)\s*", budget)
    try:
        amount = float(found.group(1)) if found else math.nan
    except ValueError:
        amount = math.nan
    if found is None or not 0 < amount < math.inf:
        raise ValueError(f"--budget {budget!r}: give a time (20m, 2h), '500000 images' or '1e6 gflop'")
    unit = found.group(2)
    if unit in _SECONDS:
        return amount * _SECONDS[unit], "seconds"
    return amount, "images" if unit.startswith("image") else "gflop"


def steps_for(budget: str, config: RunConfig, source: Source, method: Method, world: World) -> int:
    """Turn a budget into optimizer steps; what measuring takes is part of a time.

    Args:
        budget: `30s`, `20m`, `2h` (measured now), `500000 images`, `1e6 gflop` (forward and backward).
    Raises:
        ValueError: the budget is none of these, or shorter than one step.
    """
    amount, unit = read_budget(budget)
    if unit == "images":
        steps = amount / config.batch
    elif unit == "gflop":
        steps = amount * 1e9 / (flops_per_image(config, method, world) * config.batch)
    else:
        begin = time.monotonic()
        step = measure(config, source, method, world, min(8.0, amount / 10))
        steps = (amount - (time.monotonic() - begin)) / step
    if steps < 1:
        raise ValueError(
            f"--budget {budget!r} is less than one step of {config.batch} images; give more, or a smaller --batch"
        )
    return world.least(int(steps))


def measure(config: RunConfig, source: Source, method: Method, world: World, seconds: float = 8.0) -> float:
    """Seconds of an optimizer step, data included, as the median of those made in `seconds`.

    The method's weights move: build it anew afterwards.
    """
    optimizer = optimizer_of(method, config, world)
    stream = stream_of(config, source, world, 0, MOST)
    alone = World(0, 1, world.device)  # no exchange: every rank measures itself
    times: list[float] = []
    begin = before = time.perf_counter()
    for step, hosts in enumerate(stream):
        batches = [to_device(host, config, world.device) for host in hosts]
        update(method, optimizer, batches, Progress(step, MOST, 1.0), config, alone)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        now = time.perf_counter()
        times.append(now - before)
        before = now
        if now - begin > seconds and len(times) > 3:
            break
    mine = torch.tensor(sorted(times[2:])[len(times[2:]) // 2])
    return float(world.total(mine)) / world.size


def flops_per_image(config: RunConfig, method: Method, world: World) -> float:
    """Floating-point operations of forward and backward for one image, counted by torch."""
    batch = synthetic_batch(config.method, config.data, 2, world.device)
    counted = copy.deepcopy(method)
    # the plain kernel of attention: torch 2.14 and older count nothing for the fused one of a CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        counted(batch, Progress(0, 1, 1.0)).loss.backward()
    return counter.get_total_flops() / 2
