"""Seconds of a step of several processes, measured on a CPU beside what the formulas of docs/scaling.md say.

    OMP_NUM_THREADS=1 python benchmarks/worlds.py

A round measures the formula's two rates and then a step: arithmetic, on a step of MAE ViT-B/16 that exchanges nothing,
made by all processes at a time (they share caches and memory); the link, on what the way exchanges over gloo, 64 MB
each (a sum; or two gatherings and a scattering, which gloo does more slowly); and a whole step in fp32 (`step.update`:
forward, backward, exchange, clipping, AdamW) on a batch of noise. Numbers are medians of rounds, the ratio's with its
extremes. "Apart" is the formula's arithmetic and exchange one after the other.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Literal

import memory
import torch
import torch.distributed as dist

from unmask import parallel
from unmask.budget import synthetic_batch
from unmask.config import DataConfig, MethodConfig, OptimConfig, RunConfig
from unmask.methods.base import Progress
from unmask.methods.ibot import IBOTConfig
from unmask.methods.mae import MAEConfig
from unmask.optim import build_optimizer
from unmask.parallel import World
from unmask.step import update
from unmask.testing.processes import on_processes
from unmask.train import prepare

CASES: dict[str, tuple[memory.Step, MethodConfig]] = {
    "mae": (memory.mae("B"), MAEConfig()),
    "ibot": (memory.ibot("S"), IBOTConfig()),
}
WAYS: tuple[tuple[Literal["ddp", "fsdp"], bool], ...] = (("ddp", False), ("fsdp", False), ("fsdp", True))
SENT = 64 << 20


def seconds(of: Callable[[], object], world: World) -> float:
    """From when all processes begin to when all are done."""
    world.wait()
    begin = time.perf_counter()
    of()
    world.wait()
    return time.perf_counter() - begin


def step_of(
    method: MethodConfig, images: int, how: Literal["ddp", "fsdp"], recompute: bool, world: World
) -> Callable[[], object]:
    """One optimizer step of a fresh model on `images` of this process."""
    config = RunConfig(
        "worlds", method, DataConfig(), OptimConfig(clip=1.0), batch=images * world.size, device_batch=images,
        workers=0, precision="fp32", compile="off", recompute="on" if recompute else "off",
    )  # fmt: skip
    config, built = prepare(config, world)
    engine = parallel.wrap(built, world, how).train()
    optimizer = build_optimizer(built.parameter_groups(), config.optim)
    batch = synthetic_batch(method, config.data, images, world.device)
    return lambda: update(engine, optimizer, [batch], Progress(1, 4, 1.0), config, world)


def exchange_of(how: Literal["ddp", "fsdp"], world: World) -> Callable[[], object]:
    """A sum, which sends its bytes twice, or two gatherings and a scattering."""
    whole, part = torch.ones(SENT // 4), torch.ones(SENT // 4 // world.size)

    def gather_and_scatter() -> None:
        dist.all_gather_into_tensor(whole, part)
        dist.all_gather_into_tensor(whole, part)
        dist.reduce_scatter_tensor(part, whole)

    return gather_and_scatter if how == "fsdp" else lambda: dist.all_reduce(whole)


def measure(world: World, images: int, rounds: int) -> dict:
    """Seconds of (arithmetic without exchange, exchange without arithmetic, step) in every round of every case."""
    bare = step_of(CASES["mae"][1], images, "ddp", False, World(0, 1, world.device))
    found = {}
    for name, (_, method) in CASES.items():
        for how, again in WAYS:
            turns = (bare, exchange_of(how, world), step_of(method, images, how, again, world))
            for turn in turns:
                turn()
            found[name, how, again] = [[seconds(turn, world) for turn in turns] for _ in range(rounds)]
            del turns, turn  # one model goes before the next comes
    return found


def main() -> None:
    about, epilog = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=2, help="of a step, on each process (2)")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    count, images = given.processes, given.images
    found = on_processes(measure, count, images, given.rounds, timeout=3600)[0]
    share = (count - 1) / count
    print(f"{count} processes, {images} images each, {given.rounds} rounds\n")
    print("| step | way | GFLOP/s | GB/s | arithmetic, s | exchange, s | measured, s | measured / apart |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, how, again), timings in found.items():
        step = CASES[name][0]
        row = memory.Row(step, how == "fsdp", again, count)
        way = ("FSDP2" if row.sharded else "DDP") + (", recomputed" if again else "")
        lines = []
        for bare, sent, measured in timings:
            rate, link = images * CASES["mae"][0].flops / bare, (3 if row.sharded else 2) * SENT * share / sent
            products, exchange = row.seconds(images, rate), step.exchanged_bytes(row.sharded) * share / link
            lines.append((rate / 1e9, link / 1e9, products, exchange, measured, measured / (products + exchange)))
        *numbers, ratios = zip(*lines, strict=True)
        cells = [f"{median(values):.3g}" for values in numbers]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {step.name} | {way} | {' | '.join(cells)} | {spread} |")


if __name__ == "__main__":
    main()
