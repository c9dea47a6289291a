"""MODEL as it is written on the command line, opened: a backbone and how its images are prepared."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from .analyze.subject import Subject
from .config import DataConfig, RunConfig
from .data.sources import Source, open_source
from .data.survey import survey
from .evaluate import Assessment, EvalModel
from .evaluate import assess as judge
from .evaluate.classifier import FILE, read_classifier
from .methods.base import Method
from .methods.dvae import DVAE
from .nearest import beside, nearest
from .positions import pair
from .randomness import fold
from .recipes import Facts, find, fitting_size
from .run import Run
from .vit import ViT
from .weights.files import read_json
from .weights.load import describe
from .weights.load import load as load_weights
from .weights.loaded import Loaded

_GRAMMAR = (
    "give a run directory (RUN, RUN@STEP, RUN:student, RUN:teacher), a checkpoint file (MAE, BEiT, iBOT, DINO, "
    "timm, JAX), a folder that was exported or is of transformers, timm:NAME, hf:NAME_OR_FOLDER, "
    "untrained:RECIPE or pixels"
)
Note = Callable[[str], None]
"""says a line to a person"""


def load(spec: str, *, heads: int | None = None, note: Note | None = None) -> ViT:
    """Load a MODEL's network, on the CPU and in evaluation mode.

    Args:
        spec: `RUN[@STEP][:student|:teacher]` (the newest step, the teacher where there is one), a file or
            folder of weights of any dialect (docs/weights.md), `timm:NAME`, `hf:NAME_OR_FOLDER` or
            `untrained:RECIPE`.
        heads: attention heads, where the weights do not tell them.
        note: is told what the weights look like and what was taken for granted; None: standard error.
    Raises:
        ValueError, FileNotFoundError: there is no such model, or it cannot be loaded whole.
    """
    backbone = open_model(spec, Facts(), heads=heads, note=note).backbone
    if backbone is None:
        raise ValueError(f"{spec} has no network to load; {_GRAMMAR.removesuffix(' or pixels')}")
    return backbone


Protocol = Literal["knn", "linear", "attentive", "finetune"]


def evaluate(
    models: Sequence[str],
    protocols: Sequence[Protocol],
    train: str | Source,
    test: str | Source,
    **options: Any,
) -> list[dict[str, Any]]:
    """Judge MODELs by labelled DATA: `evaluate.evaluate` for what is written on the command line.

    Args:
        models: as for `open_model`; compared on the same images.
        protocols: `knn`, `linear`, `attentive`, `finetune`.
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
    protocols: Sequence[Protocol],
    train: str | Source,
    test: str | Source,
    *,
    labels: Literal["auto", "folder", "none"] = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
    heads: int | None = None,
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
        heads: attention heads, where a model's file does not tell them.
        options: of `evaluate.assess`: pools, layers, ks, shots, seeds, probe, augment, epochs, lr, save, ...
    """
    known, asked = (open_source(d, labels) if isinstance(d, str) else d for d in (train, test))
    opened = open_models(models, known, seed=seed, device=device, heads=heads, note=options.get("note"))
    return judge(opened, protocols, known, asked, seed=seed, device=device, **options)


def open_models(
    specs: Sequence[str],
    data: Source,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    heads: int | None = None,
    note: Note | None = None,
) -> list[EvalModel]:
    """Open MODELs that will see the same data; those that are sized by it are sized once.

    `pixels` and `untrained:RECIPE` read images as the first model beside them does: with its channels and
    its range.
    """
    specs = list(dict.fromkeys(specs))
    sized = {spec for spec in specs if spec == "pixels" or spec.startswith("untrained:")}
    opened = {spec: open_model(spec, Facts(), heads=heads, note=note) for spec in specs if spec not in sized}
    like = next(iter(opened.values()), None)
    channels, value_range = (3, None) if like is None else (like.channels, like.value_range)
    if sized:
        side, mean, std = survey(data, seed=seed, channels=channels, value_range=value_range)
        facts = Facts(len(data), side, channels, mean, std, torch.device(device).type == "cuda")
        opened |= {spec: open_model(spec, facts)._replace(value_range=value_range) for spec in sized}
    for model in opened.values():
        if model.backbone is not None:
            model.backbone.to(device)
    return [opened[spec] for spec in specs]


def open_model(spec: str, facts: Facts, *, heads: int | None = None, note: Note | None = None) -> EvalModel:
    """Open a MODEL for evaluation.

    Args:
        spec: as for `load`, a folder of `evaluate --save`, or `pixels`.
        facts: of the data it will see; an untrained model and pixels are sized by them.
        heads, note: as for `load`.
    Raises:
        ValueError, FileNotFoundError: there is no such model; says what could be given.
    """
    if spec == "pixels":
        side = fitting_size(facts.side)[0]
        return EvalModel("pixels", None, (side, side), facts.mean, facts.std, facts.channels)
    if spec.startswith("untrained:"):
        return untrained(find(spec.removeprefix("untrained:"))(facts), spec)
    if (Path(spec) / FILE).is_file():
        saved = read_classifier(Path(spec))
        config = saved.vit.config
        return EvalModel(spec, saved.vit, config.image_hw, saved.mean, saved.std, config.channels, saved.value_range)
    if not names_run(spec) and exists(spec):
        loaded = read_weights(spec, heads)
        for line in describe(loaded):
            (note or _to_stderr)(line)
        size, mean, std = loaded.vit.image_hw, loaded.mean, loaded.std
        return EvalModel(spec, loaded.build(), size, mean, std, loaded.vit.channels, loaded.range)
    run, step, part = parse_run(spec)
    backbone = vit_of(run.method(step), part)
    return evaluated(spec, backbone, run.config)


def names_run(spec: str) -> bool:
    """Whether a MODEL is one of our runs: a folder whose config.json is a run's, not transformers'."""
    place, _ = _split(spec.partition("@")[0] if not Path(spec).exists() else spec)
    return "recipe" in read_json(Path(place) / "config.json")


def exists(spec: str) -> bool:
    """Whether a MODEL that is no run can be looked for: a name of a library, or a path that is there."""
    return spec.startswith(("timm:", "hf:")) or Path(_split(spec)[0]).exists()


def read_weights(spec: str, heads: int | None = None) -> Loaded:
    """Read a MODEL that is no run: `FILE_OR_FOLDER[:student|:teacher]`, `timm:NAME`, `hf:NAME_OR_FOLDER`.

    A folder of `evaluate --save` too, with its head.
    """
    if (Path(spec) / FILE).is_file():
        kept = read_classifier(Path(spec))
        state, input_ = kept.vit.state_dict(), (kept.mean, kept.std, kept.value_range)
        return Loaded("a saved classifier", kept.vit.config, state, {}, *input_, classes=tuple(kept.classes))
    if not exists(spec):
        parse_run(spec)  # says what could be given
    place, part = _split(spec)
    return load_weights(place, heads, part)


def _split(spec: str) -> tuple[str, str]:
    """A path and the part after it, student or teacher; empty: none."""
    found = re.fullmatch(r"(.+):(student|teacher)", spec)
    return (found[1], found[2]) if found and not Path(spec).exists() else (spec, "")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def untrained(config: RunConfig, name: str) -> EvalModel:
    """The network that a run of this configuration begins with."""
    torch.manual_seed(fold(config.seed, "init"))
    return evaluated(name, vit_of(config.method.build()).eval(), config)


def evaluated(name: str, backbone: ViT, config: RunConfig) -> EvalModel:
    """A backbone with its run's preparation of images and its method's own features."""
    data, own = config.data, config.method
    size, prepared = backbone.config.image_hw, (data.mean, data.std, data.channels, data.range)
    return EvalModel(name, backbone, size, *prepared, pools=own.pools, layers=own.layers, probe=own.probe)


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
        near = _meant(spec, Path(found.group(1) if found else spec), grammar == _GRAMMAR)
        raise FileNotFoundError(f"no model {spec!r}; {f'did you mean {near}?' if near else grammar}")
    step = int(found.group(2)) if found.group(2) else None
    return Run(found.group(1)), step, found.group(3) or ""


def _meant(spec: str, path: Path, any_model: bool) -> str:
    """The MODEL most like one that is not there; empty: none is."""
    before, colon, after = spec.partition(":")
    if colon and Path(before.partition("@")[0]).is_dir():
        return f"{before}:{part}" if (part := nearest(after, ("student", "teacher"))) else before
    if colon and any_model:
        return f"{kind}:{after}" if (kind := nearest(before, ("untrained", "timm", "hf"))) else ""
    return beside(path, folders=True) or (nearest(spec, ("pixels",)) if any_model else "")


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
