"""`unmask demo`: the main job on real photographs that come with a package, in under five minutes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a ViT this narrow is no faster on two (measured: 1,110 images/s against 950)
    try:
        # on a GPU the recipe would size itself to that: another model and batch, and no two runs alike
        where = {"out": Path(out) / "run", "device": "cpu", "workers": 1}
        run = pretrain("mae", "demo:train", steps=steps, seed=seed, **where)
    finally:
        torch.set_num_threads(threads)
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
