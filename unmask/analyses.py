"""`unmask show MODEL[,MODEL...] WHAT DATA` for the analyses: from words to opened models, images and a file."""

from pathlib import Path

import torch

from .analyze import ANALYSES, analyze
from .analyze.subject import Ask
from .data.sources import Source, holdout_split, open_source
from .evaluate.shots import few
from .models import open_subjects
from .run import Run, held_in


def study(
    models: str,
    what: str,
    data: str | None = None,
    out: str | Path | None = None,
    *,
    count: int | None = None,
    train: str | None = None,
    seed: int = 0,
    steps: int = 500,
    device: torch.device | str = "cpu",
) -> Path:
    """Run one analysis of `analyze.ANALYSES`.

    Args:
        models: one MODEL, or several with commas between: `RUN[@STEP][:student|:teacher]`,
            `untrained:RECIPE`. They see the same images.
        what: attention-distance, ..., collapse.
        data: images, as for `open_source`; labelled ones for bands, targets, teacher-student and averaging.
        out: the figure; None: `RUN/figures/WHAT.png`, or `WHAT.png` for several models. Numbers go to the
            same name with .json.
        count: images measured; None: as the analysis has it.
        train: labelled images that k-NN learns from (None: half of DATA), or images that a run goes on
            with (None: the run's own).
        seed: of the sample of images, masks, noise and the bootstrap.
        steps: optimizer steps of a continuation (averaging, target-noise).
        device: where to compute.
    Returns:
        the figure's file.
    Raises:
        ValueError, FileNotFoundError: a model that the analysis does not apply to, or images that are missing.
    """
    specs = [models] if Path(models).exists() else [spec for spec in models.split(",") if spec]
    source = None if data is None else open_source(data)
    subjects = open_subjects(specs, source, seed=seed, device=device)
    more = None if train is None else open_source(train)
    first = subjects[0].run
    if more is None and ANALYSES[what].train and first is not None:
        more = own_images(first)
    if out is None:
        out = first.figures / f"{what}.png" if first is not None and len(subjects) == 1 else f"{what}.png"
    ask = Ask(source, more, ANALYSES[what].count if count is None else count, seed, steps)
    return analyze(what, subjects, ask, out)


def own_images(run: Run) -> Source:
    """The images that a run was trained on.

    Raises:
        FileNotFoundError, ValueError: they are no longer where they were.
    """
    data = run.config.data
    try:
        source = few(open_source(data.train, data.labels), data.shots, run.config.seed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; {run.path} was trained on it: give the images as DATA, for an analysis with --train DATA"
        ) from None
    return holdout_split(source, held_in(run.path), data.holdout_by)[0] if data.holdout else source
