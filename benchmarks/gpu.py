"""A training step on a GPU: its time, its share of a peak, and whether the host waits for the device.

    python benchmarks/gpu.py --peak-tflops 790
    python benchmarks/gpu.py ibot-vit-s16-in1k --batch 64 --compile on --peak-tflops 790

A whole `step.update` (forward, backward, clipping, optimizer, what follows it) on a synthetic batch; the
operations are counted by formula (`unmask/flops.py`, checked with torch's counter in tests/test_flops.py),
without what recomputation makes twice. `--peak-tflops` is the device's dense bf16 rate: 790 for an H200,
of which half is the goal. Host waits come from the profiler: calls of the CUDA runtime that wait, and
reads of a value, in three steps. Without a GPU it runs the nano recipes on the CPU, to test itself.
"""

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from unmask import parallel
from unmask.budget import synthetic_batch
from unmask.compilation import compile_blocks
from unmask.config import RunConfig
from unmask.flops import flops_of_image
from unmask.methods.base import Batch, Method, Progress
from unmask.optim import build_optimizer
from unmask.parallel import World
from unmask.recipes import Facts, find
from unmask.step import update
from unmask.train import prepare

PUBLISHED = ("mae-vit-b16-in1k", "mae-vit-l16-in1k", "beit-vit-b16-in1k", "ibot-vit-s16-in1k", "ibot-vit-b16-in1k")
NANO = ("mae-nano", "beit-nano", "ibot-nano", "dino-nano", "dvae-nano", "supervised-nano")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
         "aten::_local_scalar_dense", "aten::nonzero")  # fmt: skip
"""events that make the host wait"""
PROFILED, WARM = 3, 3


def setting(name: str, batch: int, precision: str, compiled: bool, world: World) -> tuple[RunConfig, Method]:
    """A recipe in its published shape, on one device, with `batch` images in one micro-batch."""
    config = find(name)(Facts())
    given: Any = {"batch": batch, "device_batch": batch, "precision": precision, "out": "unused", "workers": 0}
    config, method = prepare(dataclasses.replace(config, **given), world)
    if compiled:
        compile_blocks(method)
    return config, method.train()


def in_fused_adamw(event: Any) -> bool:
    """Whether a CPU's fused AdamW reads its step counters: they lie in its memory; a GPU's stay on the GPU."""
    while event is not None and event.name != "aten::_fused_adamw_":
        event = event.cpu_parent
    return event is not None


def measure(name: str, batch: int, precision: str, compiled: bool, rounds: int, world: World) -> dict[str, Any]:
    """Median seconds of a step, operations by formula, memory, and the waits of a step."""
    config, method = setting(name, batch, precision, compiled, world)
    optimizer = build_optimizer(method.parameter_groups(), config.optim)
    batches: list[Batch] = [synthetic_batch(config.method, config.data, batch, world.device)]
    hidden = sum(len(each) for each in batches[0].hidden) / batch

    def step(count: int) -> None:
        update(method, optimizer, batches, Progress(count, 100_000, 1000.0), config, world)

    def finish() -> None:
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)

    for count in range(WARM):
        step(count)
    finish()
    seconds = []
    for _ in range(rounds):  # five steps at a time: what the host waits for at their end is not a step's
        begin = time.perf_counter()
        for count in range(5):
            step(count)
        finish()
        seconds.append((time.perf_counter() - begin) / 5)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])
    with profile(activities=activities) as record:
        for count in range(PROFILED):
            step(count)
    waits = [event.name for event in record.events() or [] if event.name in WAITS and not in_fused_adamw(event)]
    gpu = world.device.type == "cuda"
    return {
        "recipe": name,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "batch": batch,
        "precision": config.precision,
        "compiled": compiled,
        "ms": 1e3 * statistics.median(seconds),
        "ms_range": [1e3 * min(seconds), 1e3 * max(seconds)],
        "gflop_an_image": flops_of_image(config.method, hidden) / 1e9,
        "tflops": flops_of_image(config.method, hidden) * batch / statistics.median(seconds) / 1e12,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else None,
        "waits_a_step": len(waits) / PROFILED,
        "waits": sorted(set(waits)),
    }


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    about, epilog = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", help="default: published ones on a GPU, nano ones on a CPU")
    parser.add_argument("--batch", type=int, help="images of a step (128; on a CPU 8)")
    parser.add_argument("--peak-tflops", type=float, help="the device's dense rate in this precision; shows the share")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="torch.compile, block by block")
    parser.add_argument("--rounds", type=int, default=7, help="of five steps each; the median is told")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    world = parallel.start(given.device)
    gpu = world.device.type == "cuda"
    if not gpu:
        print("no GPU: these numbers test the script and say nothing of one")
    print("| recipe | batch | ms a step | GFLOP an image | TFLOP/s | share of the peak | waits a step |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name in given.recipes or (PUBLISHED if gpu else NANO):
        batch = given.batch or (128 if gpu else 8)
        row = measure(name, batch, given.precision, given.compile == "on", given.rounds, world)
        row["share"] = row["tflops"] / given.peak_tflops if given.peak_tflops else None
        share = f"{row['share']:.1%}" if given.peak_tflops else "-"
        low, high = row["ms_range"]
        print(
            f"| {name} | {batch} | {row['ms']:.1f} [{low:.1f}, {high:.1f}] | {row['gflop_an_image']:.3g} | "
            f"{row['tflops']:.3g} | {share} | {row['waits_a_step']:.2g} |"
        )
        rows.append(row)
    for row in rows:
        print(json.dumps(row))
    return rows


if __name__ == "__main__":
    main()
