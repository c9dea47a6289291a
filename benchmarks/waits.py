"""Whether the host waits for the device in a training step: what the profiler's trace has of it.

    python benchmarks/waits.py
    python benchmarks/waits.py ibot-vit-s16-in1k --batch 64 --compile on

Calls of the CUDA runtime that wait, and reads of a value, in what the loop does with three steps' micro-batches once
workers have made them: the copy to the device, colors, and `step.update` (forward, backward, clipping, optimizer, what
follows it). There should be none: the host then queues a step while the GPU still computes the one before. How fast
a step is `benchmarks/step.py` measures. Without a GPU it runs the nano recipes on the CPU, to test itself.
"""

import argparse
import dataclasses
import json
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from unmask import parallel
from unmask.compilation import compile_blocks, optimizer_of
from unmask.data.demo import Demo
from unmask.data.stream import HostBatch
from unmask.methods.base import Progress
from unmask.parallel import World
from unmask.recipes import Facts, find
from unmask.step import Upload, share_hidden, update
from unmask.train import prepare, stream_of

PUBLISHED = ("mae-vit-b16-in1k", "mae-vit-l16-in1k", "beit-vit-b16-in1k", "ibot-vit-s16-in1k", "ibot-vit-b16-in1k")
NANO = ("mae-nano", "beit-nano", "ibot-nano", "dino-nano", "dvae-nano", "supervised-nano")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
         "aten::_local_scalar_dense", "aten::nonzero")  # fmt: skip
"""events that make the host wait"""
PROFILED, WARM = 3, 3


def in_fused_adamw(event: Any) -> bool:
    """Whether a CPU's fused AdamW reads its step counters: they lie in its memory; a GPU's stay on the GPU."""
    while event is not None and event.name != "aten::_fused_adamw_":
        event = event.cpu_parent
    return event is not None


def waits(name: str, batch: int, precision: str, compiled: bool, world: World) -> Counter[str]:
    """The waits of three steps of a recipe in its published shape, `batch` images in each of two micro-batches."""
    given: Any = {"batch": 2 * batch, "device_batch": batch, "precision": precision, "out": "unused", "workers": 0}
    config, method = prepare(dataclasses.replace(find(name)(Facts()), **given), world)
    if compiled:
        compile_blocks(method, whole=True)
    optimizer, upload = optimizer_of(method.train(), config, world), Upload(config, world.device)
    hosts = list(stream_of(config, Demo("train"), world, 0, WARM + PROFILED))

    def steps(first: int, given: list[list[HostBatch]]) -> None:
        for at, micro_batches in enumerate(given, first):
            batches = upload(micro_batches)
            share_hidden(batches, world)
            update(method, optimizer, batches, Progress(at, 100_000, 1000.0), config, world)

    steps(0, hosts[:WARM])
    activities = [ProfilerActivity.CPU]
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as record:
        with record_function("steps"):
            steps(WARM, hosts[WARM:])
    events = record.events() or []
    end = max(e.time_range.end for e in events if e.name == "steps")  # after it the profiler itself waits
    waiting = (e for e in events if e.name in WAITS and e.time_range.start < end)
    return Counter(e.name for e in waiting if not in_fused_adamw(e))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    about, epilog = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", help="default: published ones on a GPU, nano ones on a CPU")
    parser.add_argument("--batch", type=int, help="images of a step (64; on a CPU 8)")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="torch.compile, as on one GPU")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    world = parallel.start(given.device)
    gpu = world.device.type == "cuda"
    if not gpu:
        print("no GPU: these numbers test the script and say nothing of one")
    rows = []
    for name in given.recipes or (PUBLISHED if gpu else NANO):
        batch = given.batch or (64 if gpu else 8)
        found = waits(name, batch, given.precision, given.compile == "on", world)
        rows.append(
            {
                "recipe": name,
                "device": torch.cuda.get_device_name() if gpu else "cpu",
                "batch": batch,
                "compiled": given.compile == "on",
                "waits_a_step": found.total() / PROFILED,
                "waits": dict(found),
            }
        )
        print(json.dumps(rows[-1]))
    return rows


if __name__ == "__main__":
    main()
