"""Does training in bf16 lead where fp32 leads? Loss curves of both beside what another seed does.

    python benchmarks/precision.py DATA --out FOLDER [--recipes mae beit ibot dvae] [--steps 400] [--seeds 3]
                                   [--processes 2] [--tokenizer RUN]

Each recipe is trained from each seed in both precisions, by `unmask pretrain`, one thread a process; runs that are
there go on or are taken as they are. The same seed means the same weights, images, views and masks, so that what
two precisions differ by is rounding and what it grows to; two seeds differ by the noise that any run has. Tables go
to the screen and to FOLDER/precision.md, curves to FOLDER/precision.png.
"""

import argparse
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from unmask.run import Run

PRECISIONS = ("fp32", "bf16")


def train(out: Path, recipe: str, seed: int, precision: str, arguments: argparse.Namespace) -> None:
    """One run, or what is missing of it."""
    words = [sys.executable, "-m", "unmask", "pretrain", recipe, arguments.data, "--out", str(out), "--device", "cpu"]
    words += ["--steps", str(arguments.steps), "--seed", str(seed), "--precision", precision]
    if recipe == "beit" and arguments.tokenizer:
        words += ["--tokenizer", arguments.tokenizer]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with out.with_suffix(".log").open("a") as log:
        subprocess.run(words, check=True, env=alone, stdout=log, stderr=log)


def losses(run: Path) -> np.ndarray:
    """Step and loss of each log line, [L 2]."""
    return np.array([(line["step"], line["loss"]) for line in Run(run).metrics() if "loss" in line])


def rows(curves: dict[tuple[int, str], np.ndarray]) -> list[str]:
    """The mean loss over the last half, of each seed and precision, and what differs."""
    late = {key: curve[len(curve) // 2 :, 1].mean() for key, curve in curves.items()}
    seeds = sorted({seed for seed, _ in curves})
    by = {p: np.array([late[seed, p] for seed in seeds]) for p in PRECISIONS}
    paired = by["bf16"] - by["fp32"]
    noise = by["fp32"].std(ddof=1) if len(seeds) > 1 else float("nan")
    cells = [" ".join(f"{value:.4f}" for value in by[p]) for p in PRECISIONS]
    return [*cells, f"{paired.mean():+.4f} ({paired.min():+.4f} to {paired.max():+.4f})", f"{noise:.4f}"]


def draw(found: dict[str, dict[tuple[int, str], np.ndarray]], file: Path) -> None:
    """Above, all curves; below, bf16 less fp32 of one seed, in the band of fp32 less the seeds' mean."""
    figure, axes = plt.subplots(2, len(found), figsize=(3.4 * len(found), 5), squeeze=False, sharex="col")
    for (recipe, curves), (above, below) in zip(found.items(), axes.T, strict=True):
        for (_, precision), curve in curves.items():
            color = {"fp32": "#4c72b0", "bf16": "#dd8452"}[precision]
            above.plot(*curve.T, color=color, linewidth=0.8, alpha=0.8)
        seeds = sorted({seed for seed, _ in curves})
        full = np.stack([curves[seed, "fp32"][:, 1] for seed in seeds])
        spread, steps = np.abs(full - full.mean(0)).max(0), curves[seeds[0], "fp32"][:, 0]
        below.fill_between(steps, -spread, spread, color="#4c72b0", alpha=0.2, linewidth=0)
        for seed in seeds:
            below.plot(steps, curves[seed, "bf16"][:, 1] - curves[seed, "fp32"][:, 1], color="#dd8452", linewidth=0.8)
        above.set_title(recipe)
        below.set_xlabel("step")
    axes[0, 0].set_ylabel("loss\nfp32 blue, bf16 orange")
    axes[1, 0].set_ylabel("bf16 less fp32, same seed\nband: seeds in fp32")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="as `unmask pretrain` takes it")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--recipes", nargs="+", default=["mae", "beit", "ibot", "dvae"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tokenizer", metavar="RUN", help="for beit; without it each run trains its own first")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = {
        (recipe, seed, precision): arguments.out / f"{recipe}-{seed}-{precision}"
        for recipe, seed, precision in itertools.product(arguments.recipes, range(arguments.seeds), PRECISIONS)
    }
    with ThreadPoolExecutor(arguments.processes) as pool:
        for done in [pool.submit(train, out, *key, arguments) for key, out in runs.items()]:
            done.result()
    found: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    for (recipe, seed, precision), out in runs.items():
        found.setdefault(recipe, {})[seed, precision] = losses(out)
    lines = [
        "| recipe | fp32, a seed each | bf16 | bf16 less fp32, same seed | between seeds |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {recipe} | {' | '.join(rows(curves))} |" for recipe, curves in found.items()]
    (arguments.out / "precision.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(found, arguments.out / "precision.png")


if __name__ == "__main__":
    main()
