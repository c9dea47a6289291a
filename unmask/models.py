"""MODEL as it is written on the command line, opened: a backbone and how its images are prepared."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from .analyze.subject import Subject
from .config import DataConfig, RunConfig
from .data.sources import Source, open_source
from .data.survey import survey
from .evaluate import EvalModel
from .evaluate import evaluate as judge
from .methods.base import Method
from .methods.dvae import DVAE
from .positions import pair
from .randomness import fold
from .recipes import Facts, find, fitting_size
from .run import Run
from .vit import ViT

_GRAMMAR = "give a run directory (RUN, RUN@STEP, RUN:student, RUN:teacher), untrained:RECIPE or pixels"


def load(spec: str) -> ViT:
    """Load a MODEL's network, on the CPU and in evaluation mode.

    Args:
        spec: `RUN[@STEP][:student|:teacher]` (the newest step, the teacher where there is one) or
            `untrained:RECIPE`.
    Raises:
        ValueError, FileNotFoundError: there is no such model; says what could be given.
    """
    backbone = open_model(spec, Facts()).backbone
    if backbone is None:
        raise ValueError(f"{spec} has no network to load; {_GRAMMAR.removesuffix(' or pixels')}")
    return backbone


def evaluate(
    models: Sequence[str],
    protocols: Sequence[Literal["knn", "linear"]],
    train: str | Source,
    test: str | Source,
    *,
    labels: Literal["auto", "folder", "none"] = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
    **options: Any,
) -> list[dict[str, Any]]:
    """Judge MODELs by labelled DATA: `evaluate.evaluate` for what is written on the command line.

    Args:
        models: as for `open_model`; compared on the same images.
        protocols: `knn`, `linear`.
        train: labelled DATA that the classifiers learn from.
        test: labelled DATA that they are judged by.
        labels: as for `open_source`.
        seed: of the bootstrap, the probe and the survey.
        device: where to compute.
        options: of `evaluate.evaluate`: pools, ks, batch, workers, note, progress.
    Returns:
        its rows.
    Raises:
        ValueError, OSError: one line that names the value, the place and the cure.
    """
    known, asked = (open_source(d, labels) if isinstance(d, str) else d for d in (train, test))
    opened = open_models(models, known, seed=seed, device=device)
    return judge(opened, protocols, known, asked, seed=seed, device=device, **options)


def open_models(
    specs: Sequence[str], data: Source, *, seed: int = 0, device: torch.device | str = "cpu"
) -> list[EvalModel]:
    """Open MODELs that will see the same data; those that are sized by it are sized once.

    `pixels` and `untrained:RECIPE` read images as the first run beside them does: with its channels and
    its range.
    """
    specs = list(dict.fromkeys(specs))
    sized = {spec for spec in specs if not _is_run(spec)}
    like = next((parse_run(spec)[0].config.data for spec in specs if spec not in sized), DataConfig())
    facts = Facts()
    if sized:
        side, mean, std = survey(data, seed=seed, channels=like.channels, value_range=like.range)
        facts = Facts(len(data), side, like.channels, mean, std, torch.device(device).type == "cuda")
    opened = []
    for spec in specs:
        model = open_model(spec, facts)
        if spec in sized:
            model = model._replace(value_range=like.range)
        if model.backbone is not None:
            model.backbone.to(device)
        opened.append(model)
    return opened


def open_model(spec: str, facts: Facts) -> EvalModel:
    """Open a MODEL for evaluation.

    Args:
        spec: `RUN[@STEP][:student|:teacher]`, `untrained:RECIPE` or `pixels`.
        facts: of the data it will see; an untrained model and pixels are sized by them.
    Raises:
        ValueError, FileNotFoundError: there is no such model; says what could be given.
    """
    if spec == "pixels":
        side = fitting_size(facts.side)[0]
        return EvalModel("pixels", None, (side, side), facts.mean, facts.std, facts.channels)
    if spec.startswith("untrained:"):
        return untrained(find(spec.removeprefix("untrained:"))(facts), spec)
    run, step, part = parse_run(spec)
    backbone, data = vit_of(run.method(step), part), run.config.data
    return EvalModel(spec, backbone, backbone.config.image_hw, data.mean, data.std, data.channels, data.range)


def untrained(config: RunConfig, name: str) -> EvalModel:
    """The network that a run of this configuration begins with."""
    torch.manual_seed(fold(config.seed, "init"))
    backbone, data = vit_of(config.method.build()), config.data
    return EvalModel(name, backbone.eval(), backbone.config.image_hw, data.mean, data.std, data.channels, data.range)


def open_subjects(
    specs: Sequence[str], data: Source | None, *, seed: int = 0, device: torch.device | str = "cpu"
) -> list[Subject]:
    """Open MODELs for an analysis: whole methods, with what their images need.

    Args:
        specs: `RUN[@STEP][:student|:teacher]` or `untrained:RECIPE`, which is sized by the data.
        data: that they will see.
        seed: of the survey.
        device: where to compute.
    Raises:
        ValueError, FileNotFoundError: there is no such model, or it has no network to look into.
    """
    like = next((parse_run(spec)[0].config.data for spec in specs if _is_run(spec)), DataConfig())
    return [_subject(spec, data, like, seed).on(device) for spec in dict.fromkeys(specs)]


def _is_run(spec: str) -> bool:
    """Whether a MODEL is a run, whose images are known: not one that is sized by the data it will see."""
    return spec != "pixels" and not spec.startswith("untrained:")


def _subject(spec: str, data: Source | None, like: DataConfig, seed: int) -> Subject:
    if spec == "pixels":
        raise ValueError(f"pixels have no network to look into; {_GRAMMAR.removesuffix(' or pixels')}")
    if spec.startswith("untrained:"):
        if data is None:
            raise ValueError(f"{spec} is sized by the images it will see; give DATA")
        side, mean, std = survey(data, seed=seed, channels=like.channels, value_range=like.range)
        config = find(spec.removeprefix("untrained:"))(Facts(len(data), side, like.channels, mean, std, False))
        config = replace(config, data=replace(config.data, range=like.range))
        torch.manual_seed(fold(config.seed, "init"))
        method = config.method.build().eval()
        return Subject(spec, method, None if isinstance(method, DVAE) else vit_of(method), config)
    run, step, part = parse_run(spec)
    method = run.method(step)
    vit = None if isinstance(method, DVAE) and not part else vit_of(method, part)
    return Subject(spec, method, vit, run.config, run, (run.latest() or 0) if step is None else step)


def parse_run(spec: str, grammar: str = _GRAMMAR) -> tuple[Run, int | None, str]:
    """Split `RUN[@STEP][:student|:teacher]` and open the run.

    Returns:
        the run, the step (None: the newest) and the part (empty: the method's own choice).
    """
    found = re.fullmatch(r"(.+?)(?:@(\d+))?(?::(student|teacher))?", spec)
    if found is None or not Path(found.group(1)).is_dir():
        path = Path(found.group(1) if found else spec)
        there = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=1)
        raise FileNotFoundError(f"no model {spec!r}; {f'did you mean {path.parent / near[0]}?' if near else grammar}")
    step = int(found.group(2)) if found.group(2) else None
    return Run(found.group(1)), step, found.group(3) or ""


def vit_of(method: Method, part: str = "") -> ViT:
    """The network of a method to look at: its backbone, or its student or teacher by name."""
    network = getattr(method, part, None) if part else method.backbone()
    network = getattr(network, "vit", network)  # a student or teacher carries its head beside the ViT
    if not isinstance(network, ViT):
        raise ValueError(f"{type(method).__name__} has no {part}; leave :{part} out")
    return network


def image_size(method: Method) -> tuple[int, int]:
    """The image size (h, w) that a method trains on."""
    return pair(method.config.views[0].size)  # type: ignore[union-attr]
