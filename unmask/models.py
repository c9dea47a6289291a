"""MODEL as it is written on the command line, opened: a backbone and how its images are prepared."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from .config import DataConfig, RunConfig
from .data.sources import Source, open_source
from .data.survey import survey
from .evaluate import Assessment, EvalModel
from .evaluate import assess as judge
from .methods.base import Method
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
    protocols: Sequence[Literal["knn", "linear", "attentive"]],
    train: str | Source,
    test: str | Source,
    **options: Any,
) -> list[dict[str, Any]]:
    """Judge MODELs by labelled DATA: `evaluate.evaluate` for what is written on the command line.

    Args:
        models: as for `open_model`; compared on the same images.
        protocols: `knn`, `linear`, `attentive`.
        train: labelled DATA that the classifiers learn from.
        test: labelled DATA that they are judged by.
        options: of `assess`.
    Returns:
        its rows.
    Raises:
        ValueError, OSError: one line that names the value, the place and the cure.
    """
    return assess(models, protocols, train, test, **options).rows


def assess(
    models: Sequence[str],
    protocols: Sequence[Literal["knn", "linear", "attentive"]],
    train: str | Source,
    test: str | Source,
    *,
    labels: Literal["auto", "folder", "none"] = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Assessment:
    """Judge MODELs by labelled DATA: `evaluate.assess` for what is written on the command line.

    Args:
        models: as for `open_model`.
        protocols: as for `evaluate`, and so the next two.
        train: learned from.
        test: judged by.
        labels: as for `open_source`.
        seed: of the bootstrap, the probes and the survey.
        device: where to compute.
        options: of `evaluate.assess`: pools, layers, ks, shots, seeds, probe, augment, cache, ...
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
    sized = {spec for spec in specs if spec == "pixels" or spec.startswith("untrained:")}
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
    backbone = vit_of(run.method(step), part)
    return evaluated(spec, backbone, run.config)


def untrained(config: RunConfig, name: str) -> EvalModel:
    """The network that a run of this configuration begins with."""
    torch.manual_seed(fold(config.seed, "init"))
    return evaluated(name, vit_of(config.method.build()).eval(), config)


def evaluated(name: str, backbone: ViT, config: RunConfig) -> EvalModel:
    """A backbone with its run's preparation of images and its method's own features."""
    data, own = config.data, config.method
    size, prepared = backbone.config.image_hw, (data.mean, data.std, data.channels, data.range)
    return EvalModel(name, backbone, size, *prepared, pools=own.pools, layers=own.layers, probe=own.probe)


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
