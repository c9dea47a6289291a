"""What is exported: the network of a MODEL, how its images are prepared, and what is known of its making."""

from pathlib import Path
from typing import NamedTuple

from ..methods.base import Method
from ..methods.dvae import DVAE
from ..models import open_model, parse_run, vit_of
from ..recipes import Facts
from ..run import Run
from ..vit import ViT
from ..weights.exported import DESCRIPTION, Preparation, read


class Subject(NamedTuple):
    """A MODEL, opened to be written for other programs."""

    name: str
    """as it was asked for"""
    vit: ViT | None
    """None: a dVAE run, whose codec is in `method`"""
    preparation: Preparation
    classes: tuple[str, ...] | None = None
    """names of the head's outputs, where they are known"""
    run: Run | None = None
    step: int | None = None
    method: Method | None = None
    """of a run: the decoder or head that it trained beside the backbone"""


class Written(NamedTuple):
    """What a format says of what it wrote."""

    loading: str
    """how to load it: Python that needs no unmask"""
    notes: tuple[str, ...] = ()
    """what the reader must know: what was left out, and why"""


def open_subject(model: str) -> Subject:
    """Open a MODEL for export.

    Raises:
        ValueError, FileNotFoundError: there is no such model, or it has no network.
    """
    if model == "pixels":
        raise ValueError("pixels has no network to export; give a run, a checkpoint or untrained:RECIPE")
    folder = Path(model)
    if (folder / DESCRIPTION).is_file():
        exported = read(folder)
        return Subject(model, exported.vit, exported.preparation, exported.classes)
    if not is_run(model):
        opened = open_model(model, Facts())
        return Subject(
            model,
            opened.backbone,
            Preparation(opened.size, opened.mean, opened.std, opened.channels, opened.value_range),
        )
    run, step, part = parse_run(model)
    step = run.latest() if step is None else step
    method, data = run.method(step), run.config.data
    if isinstance(method, DVAE):
        size = method.config.views[0].shape
        return Subject(model, None, Preparation(size, data.mean, data.std, data.channels, data.range), None, run, step, method)
    vit = vit_of(method, part)
    preparation = Preparation(vit.config.image_hw, data.mean, data.std, data.channels, data.range)
    return Subject(model, vit, preparation, None, run, step, method)


def is_run(model: str) -> bool:
    """Whether a MODEL is written like a run and one lies there."""
    try:
        parse_run(model)
    except (ValueError, OSError):
        return False
    return True
