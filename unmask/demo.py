"""`unmask demo`: the main job on real photographs that come with a package, in under five minutes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits

from .data.sources import open_source
from .evaluate import evaluate
from .models import open_model, untrained
from .pictures import draw_reconstruction
from .pretrain import pretrain
from .recipes import Facts
from .run import Run

STEPS = 3600
"""optimizer steps: about three minutes on two cores"""


class Demo(NamedTuple):
    """What the demo made."""

    run: Run
    rows: list[dict[str, Any]]
    """results of `evaluate`: raw pixels, the untrained ViT, the pre-trained one"""
    figures: list[Path]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: for matrices this small, two wait for each other more than they help.

    Measured: 1,110 images a second against 950, and with another process beside it several times as many.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def demo(
    out: str | Path = "demo",
    *,
    steps: int = STEPS,
    seed: int | None = None,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
) -> Demo:
    """Pre-train MAE on crops of scikit-image's photographs, evaluate it, draw what it paints.

    Training crops come from the left parts of the photographs and test crops from the right, with a
    gap between; the label is the photograph. Steps are fixed, so that a machine repeats itself bit for
    bit with the same versions and threads. The same `out` again continues what was stopped.

    Args:
        out: the folder for everything it makes; the run is `out/run`.
        steps: optimizer steps.
        seed: names every random draw; None: 0.
        progress: as for `evaluate`.
    """
    with one_thread():
        run = pretrain("mae", "demo:train", out=Path(out) / "run", steps=steps, seed=seed, workers=1, device="cpu")
        train, test = open_source("demo:train"), open_source("demo:test")
        data = run.config.data
        models = [
            open_model("pixels", Facts(side=32, mean=data.mean, std=data.std))._replace(name="raw pixels"),
            untrained(run.config, "untrained ViT"),
            open_model(str(run.path), Facts())._replace(name="pre-trained ViT"),
        ]
        rows = evaluate(models, ("knn", "linear"), train, test, ks=(20,), seed=run.config.seed, progress=progress)
    picture = draw_reconstruction(run, None, test, run.figures / "reconstruction.png", count=6)
    figures = [run.figures / "augmentations-000000.png", run.figures / "curves.png", picture]
    return Demo(run, rows, figures)
