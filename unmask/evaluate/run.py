"""Several models, several protocols, one pair of data sets: rows that can be compared."""

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import sklearn
import torch
from jaxtyping import Int

from .. import __version__
from ..config import to_json
from ..data.fingerprint import content_hash, fingerprints, seen_in
from ..data.record import Source
from . import dense, multilabel
from .answers import KS, answer, check_neighbors, fitting
from .features import Report
from .keep import check_choice, check_save, keep_linear, tuned
from .labels import Note, match_labels
from .metrics import balanced, top1
from .paired import differences
from .rows import COLUMNS, Answer
from .shots import ALL, Shots
from .store import Store, weights_hash
from .take import EvalModel, Form, Layers, Pooling, Settings

__all__ = ["COLUMNS", "KS", "Assessment", "EvalModel", "assess", "evaluate", "judge"]

Protocol = Literal["knn", "linear", "attentive", "finetune"]


class Assessment(NamedTuple):
    """Everything that an evaluation found, and what it takes to repeat it."""

    rows: list[dict[str, Any]]
    """as `evaluate` returns them"""
    differences: list[dict[str, Any]]
    """each model against the first and the untrained ones, paired (`paired.differences`)"""
    facts: dict[str, Any]
    """versions, device, hashes of images and weights; majority: what always the commonest class scores"""
    answers: list[Answer]
    """rows with the predictions behind them"""


def evaluate(
    models: Sequence[EvalModel], protocols: Sequence[Protocol], train: Source, test: Source, **options: Any
) -> list[dict[str, Any]]:
    """Judge models by labelled images: frozen features, or fine-tuned.

    Args:
        models: compared on the same images, each prepared in its own way.
        protocols: `knn` (KNN), `linear` (LinearProbe, or a published form), `attentive` (AttentiveProbe),
            `finetune` (finetune.py).
        train: labelled images that the classifiers learn from.
        test: labelled images that they are judged by; classes are matched by name where both have names.
        options: of `assess`.
    Returns:
        rows of model, protocol, features, layer, k (None where there is none), top1, balanced, ci_low,
        ci_high (95 % bootstrap interval of top1), n_train, n_test. Fractions, not percent. With shots also
        shots, seeds, deviation (of top1 over the seeds, which is then their mean); with a published probe
        also probe, augment and its settings.
    Raises:
        ValueError: nothing to compare, no labels, one class, different classes, a k that was asked for
            exceeds the training images of every number of labels, no readable image, or features that are not finite.
    """
    return assess(models, protocols, train, test, **options).rows


def assess(
    models: Sequence[EvalModel],
    protocols: Sequence[Protocol],
    train: Source,
    test: Source,
    *,
    pools: Sequence[Pooling] | None = None,
    layers: Layers | None = None,
    ks: Sequence[int] | None = None,
    shots: Sequence[str] = (),
    seeds: int = 5,
    probe: Form = "common",
    augment: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch: int = 256,
    workers: int = -1,
    cache: bool = False,
    masks: tuple[str, str] | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    save: Path | None = None,
    note: Note | None = None,
    progress: Callable[[str], Report] | None = None,
) -> Assessment:
    """Judge models by labelled images: rows, paired differences, predictions, facts.

    Args:
        models: as for `evaluate`, and so the next three.
        protocols: what reads the features, or trains on from them.
        train: learned from.
        test: judged by.
        pools: which features: cls, mean, cls+mean; None: each method's own.
        layers: last (after the final norm), best (chosen on held-out training images), all; None: the
            method's own. Blocks are numbered from 1, without the norm; attentive reads the last alone.
        ks: neighbors; None: 10, 20, 100, 200. A number of labels that is too few for some goes without those;
            where it is for all of them, all its images vote.
        shots: numbers of labels beside which nothing is learned: `1%`, `10%`, `5` (a class), `all`; none: all.
        seeds: draws of these labels.
        probe: the linear probe: common, mae, beit, ibot, or own (the method's).
        augment: random crops of each training image for a published probe; 0: the center crop.
        seed: of the bootstrap, the held-out parts, the draws and the heads.
        device: as for `extract`, and so the next three.
        precision: fp32 or bf16.
        batch: images a forward pass.
        workers: decoding processes.
        cache: keep features in the cache folder (UNMASK_CACHE).
        masks: folders of masks of the training and the test images: knn and linear judge patches
            (`dense.segment`); labels are not looked at.
        epochs: of fine-tuning, instead of the setting's.
        lr: likewise.
        save: a folder for the classifier of the one model and the one protocol, linear or finetune; of a linear
            probe on several poolings the better one by held-out training images. Fine-tuning is resumable there.
        note: told what a reader of the numbers must know; None: standard error.
        progress: makes the progress callback of a named piece of work.
    Raises:
        ValueError, OSError: as `evaluate`.
    """
    if not models or not protocols:
        raise ValueError("evaluate: no model or no protocol; give at least one model and one protocol")
    layers = "last" if save is not None and layers is None else layers  # the only one that a classifier keeps
    note = _once(note or _say)
    drawn = tuple(None if text == ALL else Shots.parse(text) for text in shots) or (None,)
    how = Settings(
        tuple(pools) if pools else None, layers, (), drawn, seeds, probe, augment, seed, device, precision, batch,
        workers,
    )  # fmt: skip
    check_save(save, models, protocols, how)
    _check_readers(models, protocols, layers, note)
    many = multilabel.match_rows(train, test)
    truth = many or (None if masks else match_labels(train, test, note))
    ask = multilabel.answer if many else answer
    if "linear" in protocols and truth is not None:
        check_choice(save, models[0], how.pools, truth[0])
    if truth is None:
        kept = tuple(ks or KS)  # neighbors among patches
    else:
        known = np.zeros(len(train), np.int64) if many else truth[0][truth[0] >= 0]
        sizes = {each.text if each else ALL: len(each.draw(known, seed) if each else known) for each in drawn}
        if "knn" in protocols:
            check_neighbors(ks, sizes, note)
        kept = fitting(ks, len(known))
    prints = fingerprints(train), fingerprints(test)
    if twice := int(seen_in(prints[1], prints[0]).sum()):
        note(f"warning: {twice} of {len(test)} test images are training images too, byte for byte: they flatter it")
    how = replace(how, ks=kept)
    data = content_hash(prints[0]), content_hash(prints[1])
    store = Store.cache() if cache else Store(None)
    given: dict[str, Any] = {"store": store, "data": data, "note": note, "progress": progress}
    answers: list[Answer] = []
    frozen = [protocol for protocol in protocols if protocol != "finetune"]
    if len(frozen) < len(protocols) and (masks or many):
        raise ValueError("finetune learns one class an image, not masks and not several labels; leave it out")
    try:
        if masks:
            rows = dense.segment(models, protocols, (train, test), masks, how, **given)
        else:
            for model in models:
                if frozen:
                    answers += ask(model, frozen, (train, test), truth, how, **given)  # pyright: ignore[reportArgumentType]
                if model.backbone is None and len(frozen) < len(protocols):
                    note(f"{model.name} has no network to fine-tune and no row of finetune")
                elif len(frozen) < len(protocols):
                    assert truth is not None
                    answers += [
                        tuned(
                            model, (train, test), truth, few, seeds, epochs=epochs, lr=lr, seed=seed, device=device,
                            workers=workers, save=save, note=note,
                        )
                        for few in drawn
                    ]  # fmt: skip
            rows = [each.row for each in answers]
            if save is not None and truth is not None and "linear" in protocols:
                probes = [row for row in rows if row["protocol"] == "linear"]
                keep_linear(
                    models[0], train, truth[0], probes, save, seed=seed, device=device, workers=workers, note=note
                )
    finally:
        store.close()
    facts = _facts(models, (train, test), data, twice, how)
    facts["majority"] = None if many or truth is None else _majority(train, *truth)
    return Assessment(rows, differences(answers, seed=seed), facts, answers)


def _check_readers(models: Sequence[EvalModel], protocols: Sequence[str], layers: Layers | None, note: Note) -> None:
    """Refuse, or say, what a protocol cannot read of a model."""
    others = [protocol for protocol in protocols if protocol in ("knn", "linear")]
    if not others and all(model.backbone is None for model in models):
        raise ValueError(f"pixels have no patch tokens and no network to train: give knn or linear, not {protocols[0]}")
    if "attentive" in protocols and layers in ("best", "all"):
        if not others:
            raise ValueError(f"attentive reads the patches of the last layer: leave --layers {layers} out")
        note(f"attentive reads the patches of the last layer: --layers {layers} is for {' and '.join(others)}")


def judge(
    model: EvalModel,
    protocols: Sequence[str],
    sources: tuple[Source, Source],
    truth: tuple[Int[np.ndarray, "S"], Int[np.ndarray, "Q"]],
    *,
    note: Note | None = None,
    progress: Callable[[str], Report] | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Judge one model by labels that are known to match (`match_labels`); nothing is kept.

    Args:
        model: whose features.
        protocols: what reads them.
        sources: training and test images.
        truth: their labels.
        note: told of skipped images.
        progress: as for `assess`.
        settings: fields of `Settings`.
    """
    answers = answer(model, protocols, sources, truth, Settings(**settings), note=note, progress=progress)
    return [each.row for each in answers]


def _majority(train: Source, known: Int[np.ndarray, "S"], asked: Int[np.ndarray, "Q"]) -> dict[str, Any]:
    """The commonest class of the training images, and what always saying it scores on the test images."""
    commonest, truth = int(np.bincount(known[known >= 0]).argmax()), asked[asked >= 0]
    said = np.full_like(truth, commonest)
    name = train.classes[commonest] if train.classes else commonest
    return {"class": name, "top1": top1(said, truth), "balanced": balanced(said, truth)}


def _facts(models, sources, data, twice: int, how: Settings) -> dict[str, Any]:
    """What it takes to repeat an evaluation."""
    versions = {"unmask": __version__, "python": platform.python_version(), "torch": torch.__version__}
    versions |= {"numpy": np.__version__, "scikit-learn": sklearn.__version__}
    sets = {
        part: {"data": source.name, "images": len(source), "hash": digest, "classes": source.classes}
        for part, source, digest in zip(("train", "test"), sources, data, strict=True)
    }
    described = [
        {
            **{key: value for key, value in model._asdict().items() if key != "backbone"},
            "weights": weights_hash(model.backbone) if model.backbone is not None else None,
            "vit": to_json(model.backbone.config) if model.backbone is not None else None,
        }
        for model in models
    ]
    machine = {"device": str(how.device), "precision": how.precision, "threads": torch.get_num_threads()}
    return {"versions": versions, "machine": machine, "data": sets, "overlap": twice, "models": described}


def _once(note: Note) -> Note:
    """Say each thing once, though every model meets the same images."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            note(text)

    return say


def _say(text: str) -> None:
    print(text, file=sys.stderr)
