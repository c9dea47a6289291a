"""`unmask embed MODEL DATA --out FILE`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..arguments import parse
from ..config import UsageError
from .common import Computing, Result

ABOUT = "MODEL DATA --out FILE.parquet|FILE.npz: the features of every image"


def run(arguments: list[str]) -> Result:
    """Write one file; the same command again continues."""
    import tyro

    from .. import parallel
    from ..console import Console
    from ..data.sources import open_source
    from ..embed import embed

    @dataclass(frozen=True)
    class Arguments(Computing):
        model: tyro.conf.Positional[str] = ""
        """a run, a checkpoint, an exported folder, untrained:RECIPE"""
        data: tyro.conf.Positional[str] = ""
        """images: a folder, tar or parquet (or a quoted glob), hf:NAME, demo:train"""
        out: Path | None = None
        """FILE.parquet or FILE.npz"""
        patches: bool = False
        """write the features of every patch, too"""
        overwrite: bool = False
        """replace a file of other settings"""
        labels: Literal["auto", "folder", "none"] = "auto"
        """where labels come from"""
        seed: int = 0
        """of the survey that sizes untrained:RECIPE"""
        batch: int = 256
        """images a forward pass"""
        precision: Literal["fp32", "bf16"] = "fp32"
        """arithmetic of the forward pass; features are written as fp32"""

    given = parse(Arguments, arguments, "embed", ABOUT)
    if not given.model or not given.data or given.out is None:
        raise UsageError("embed needs MODEL, DATA and --out: unmask embed RUN FOLDER --out features.parquet")
    if given.batch < 1:
        raise UsageError(f"--batch {given.batch}: give a positive number")
    world, source = parallel.start(given.device), open_source(given.data, given.labels)
    console, began = Console(world.first), time.perf_counter()
    rate, before = 0.0, None
    with console.bar("embed", len(source)) as bar:

        def progress(done: int, total: int) -> None:
            nonlocal rate, before
            if before is None:  # the first batch pays for what begins; a continued run has images before it
                before = (done, time.perf_counter())
            elif time.perf_counter() > before[1]:
                rate = (done - before[0]) / (time.perf_counter() - before[1])
            bar.at(done, f"{rate:,.0f} images/s" if rate else "")

        made = embed(
            given.model, source, given.out, patches=given.patches, overwrite=given.overwrite, seed=given.seed,
            heads=given.heads, device=world.device, precision=given.precision, batch=given.batch, workers=given.workers,
            progress=progress, say=console.say,
        )  # fmt: skip
    speed = f", {rate:,.0f} images a second" if rate else ""
    seconds = time.perf_counter() - began
    console.say(f"{made.file}: {made.n:,} images, {made.dim} features, {seconds:.1f} s{speed}")
    return {"seed": given.seed, "file": str(made.file), "n": made.n, "dim": made.dim, "bad": len(made.bad)}
