"""A whole training step, ours against the official code, the packages of a registry, and the floor.

    python benchmarks/step.py [--cases mae-small beit-small ...] [--official DIR] [--rounds 6] [--threads 2]
                              [--rows "unmask bf16" "official bf16" ...] [--compile] [--quick] [--json FILE]
                              [--device cuda] [--images 128] [--peak-tflops 790]

Forward, backward, clipping, optimizer and moving averages, on a batch that is in memory. Contenders take turns
(see `race.py`); ours as `unmask pretrain` has it on this machine, in bf16 where the processor multiplies it and in fp32
elsewhere, is what the others are compared with, and "of the floor" is the time of that step's matrix products alone,
in the same round, over the contender's. The official code is not part of this package: `steps/official.py` says where
it is looked for. Tables go to the screen and, case by case, to `results/<machine>.md`, except under --quick, whose
sizes are too small to tell.

On a GPU (where there is one, if --device does not say otherwise) the same contenders run there, in fp32 as torch has
it and under bf16 autocast; the default cases are ViTs from small to large. Ours is compared with
compiled blocks, as `unmask pretrain` has them there, and uncompiled beside it (--no-compile: that alone). Memory is
the GPU's, and a note says how many TFLOP/s our steps do by formula (`unmask/flops.py`), and which share of
--peak-tflops that is: 790 for an H200's dense bf16 rate, of which half is the goal.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from race import Contender, Turn, peak_memory, race
from rich.console import Console
from steps import cases, floor, official, on_gpu, ours, peers
from steps.cases import Case
from tables import QUICK, Results, Row, check_rows, compare, facts, gpu, table, write_json

from unmask.methods.beit import BEiTConfig
from unmask.parallel import hardware_precision

OURS, COMPILED, FLOOR = "unmask bf16", "unmask bf16, compiled", "floor"


def contenders(case: Case, folder: str | None, compiled: bool) -> list[Contender]:
    """Who takes the step."""

    def contender(name: str, make: Callable[..., Turn], *more: Any) -> Contender:
        if case.device == "cpu":
            return Contender(name, make, (case, *more))
        return Contender(name, on_gpu.make, (make, case, *more))

    found = [contender(f"unmask {how}", ours.make, how) for how in ("bf16", "fp32")]
    if case.device == "cpu":
        found.append(contender("unmask bf16, PyTorch's kernels", ours.make, "bf16", "torch"))
    if compiled:
        found.append(contender(COMPILED, ours.make, "bf16", "compiled"))
        if case.device != "cpu":
            found.append(contender(f"{COMPILED} by block", ours.make, "bf16", "compiled by block"))
    if isinstance(case.method, BEiTConfig) and not case.tokens_given:
        found.append(contender("unmask bf16, tokens too", ours.make, "bf16", "own", "bf16"))
    found += [contender(f"official {how}", official.make, how, folder) for how in ("fp32", "bf16")]
    for who in (peers.transformers, peers.lightly):
        found += [contender(f"{who.__name__} {how}", who, how) for how in ("fp32", "bf16")]
    precision = usual_precision(case.device)
    found += [contender(FLOOR, floor.make, precision), contender(f"{FLOOR}, AdamW", floor.make, precision, True)]
    return [*found, contender(f"{FLOOR}, AdamW, passes", floor.make, precision, True, True)]


def usual_precision(device: str) -> str:
    """That of `unmask pretrain` here; on a GPU the one the goals are set in."""
    return hardware_precision(torch.device(device)) if device == "cpu" else "bf16"


def reference(device: str, compiled: bool) -> str:
    """Which of ours the others are compared with: what `unmask pretrain` does by default on this device."""
    return COMPILED if device != "cpu" and compiled else f"unmask {usual_precision(device)}"


def measure(case: Case, arguments: argparse.Namespace, console: Console, notes: list[str]) -> list[Row]:
    """One case: all contenders that are here, in one run."""
    folder = str(Path(arguments.official).resolve()) if arguments.official else None
    all_of_them = contenders(case, folder, arguments.compile)
    compared = reference(case.device, arguments.compile)
    wanted = {compared, *arguments.rows} if arguments.rows else {c.name for c in all_of_them}
    chosen, peak = [c for c in all_of_them if c.name in wanted], on_gpu.peak_memory
    timings, left_out = race(
        chosen,
        arguments.rounds,
        arguments.threads,
        peak=peak_memory if case.device == "cpu" else peak,
        lock=arguments.lock,
    )
    rows = compare(timings, compared, case.images, FLOOR)
    console.print(table(f"{case.name}, {case.images} images a step, {arguments.rounds} rounds", rows))
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", style="dim", highlight=False, markup=False)
        notes.append(f"{case.name}: left out {name}: {why}")
    if case.device != "cpu" or arguments.peak_tflops:
        for line in computed(case, rows, arguments.peak_tflops):
            console.print(line, highlight=False)
            notes.append(line)
    return rows


def computed(case: Case, rows: Sequence[Row], peak_tflops: float | None) -> list[str]:
    """Operations a second of our steps in bf16, by formula, a line each."""
    lines = []
    for row in rows:
        if row.contender.startswith(OURS):
            rate = case.flops() * row.images_s / 1e12
            share = f", {rate / peak_tflops:.1%} of {peak_tflops:g}" if peak_tflops else ""
            each = f"{case.flops() / 1e9:.3g} GFLOP an image"
            lines.append(f"{case.name}, {case.images} images: {row.contender}: {rate:.3g} TFLOP/s{share} ({each})")
    return lines


def read_arguments() -> argparse.Namespace:
    """The command line, with what it leaves open settled."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--cases", nargs="+", default=[], choices=[case.name for case in cases.ALL], metavar="CASE",
        help=f"default: {', '.join(case.name for case in cases.CASES)}; on a GPU: {', '.join(cases.GPU_IMAGES)}",
    )  # fmt: skip
    parser.add_argument(
        "--rows", nargs="+", default=[],
        help='contenders as the table names them: "unmask fp32" floor; the one they are compared with always',
    )  # fmt: skip
    parser.add_argument("--official", metavar="DIR", help="with mae, unilm/beit, DALL-E and ibot in it")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--images", type=int, help="of a step, in place of the cases' own")
    parser.add_argument("--peak-tflops", type=float, help="the device's dense bf16 rate; shows our share of it")
    parser.add_argument("--rounds", type=int, help="default 6, under --quick 3")
    parser.add_argument("--threads", type=int, default=2, help="of each contender")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction,
        help="ours with compiled blocks, too, a minute more each; default: on a GPU",
    )  # fmt: skip
    parser.add_argument(
        "--lock", metavar="FILE", help="measure while no other benchmark with this file does; all may compile"
    )
    parser.add_argument("--quick", action="store_true", help="sizes of seconds: does it all run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line for each row")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", metavar="DIR",
        help="where tables go, by machine; default: benchmarks/results",
    )  # fmt: skip
    arguments = parser.parse_args()
    there = torch.cuda.is_available()
    if arguments.device == "cuda" and not there:
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    if arguments.device == "auto":
        arguments.device = "cuda" if there else "cpu"
    if arguments.compile is None:
        arguments.compile = arguments.device == "cuda" and not arguments.quick
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 6)
    arguments.chosen = cases.chosen(arguments.cases, arguments.quick, arguments.device, arguments.images)
    try:
        check_rows(
            arguments.rows, (c.name for case in arguments.chosen for c in contenders(case, None, arguments.compile))
        )
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main() -> None:
    arguments = read_arguments()
    console = Console(width=None if sys.stdout.isatty() else 120)
    about = facts(gpu() if arguments.device == "cuda" else None, threads=arguments.threads, rounds=arguments.rounds)
    with Results(None if arguments.quick else arguments.results, "step", about) as results:
        for case in arguments.chosen:
            rows = measure(case, arguments, console, results.notes)
            usual = case == cases.case(case.name)
            results.add(case.name if usual else f"{case.name}, {case.images} images", rows)
            if arguments.json:
                known = {"case": case.name, "images": case.images, "gflop_an_image": case.flops() / 1e9}
                write_json(arguments.json, "step", {**about, **known}, rows)
    console.print(QUICK if arguments.quick else f"written to {results.file}", highlight=False)


if __name__ == "__main__":
    main()
