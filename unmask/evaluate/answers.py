"""One model, one pair of sets, every protocol: what each says of the test images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..data.record import Source
from . import published
from .attentive import AttentiveProbe
from .crops import RandomCut
from .features import Report
from .knn import KNN
from .labels import Note
from .metrics import top1
from .probe import LinearProbe, held_out_parts
from .rows import Answer, scored
from .shots import ALL, Shots
from .store import Store
from .take import EvalModel, Part, Settings, blocks_of, take

KS = (10, 20, 100, 200)
"""numbers of neighbors: those that DINO and iBOT report"""


def answer(
    model: EvalModel,
    protocols: Sequence[str],
    sources: tuple[Source, Source],
    truth: tuple[np.ndarray, np.ndarray],
    how: Settings,
    *,
    store: Store | None = None,
    data: tuple[str, str] = ("", ""),
    note: Note | None = None,
    progress: Callable[[str], Report] | None = None,
) -> list[Answer]:
    """Judge one model by labels that are known to match (`match_labels`); arguments as for `evaluate`."""
    layers, pools = how.layers or model.layers, how.pools or model.pools
    form, backbone = how.form(model) if "linear" in protocols else "common", model.backbone
    attends = "attentive" in protocols and backbone is not None
    if backbone is None:
        kinds, blocks, pools, layers = [], (), ("pixels",), "last"
        if "attentive" in protocols and note:
            note("pixels have no patch tokens: attentive is left out for them")
    else:
        kinds, blocks = [name for pool in pools for name in pool.split("+")], blocks_of(model, layers)
        more, deep = published.needs(form, backbone) if form != "common" else ((), ())
        kinds += [*more, *(["patches"] if attends else [])]
        blocks = tuple(sorted({*blocks, *deep}))
    given: dict[str, Any] = {"store": store, "note": note, "progress": progress}
    train = take(model, sources[0], truth[0], kinds, blocks, how, data=data[0], part="train", **given)
    test = take(model, sources[1], truth[1], kinds, blocks, how, data=data[1], part="test", **given)
    judge = _Judge(model, train, test, how)
    simple = [name for name in protocols if name == "knn" or (name == "linear" and form == "common")]
    renderings = _renderings(model, form, sources, truth, how, given, data) if form != "common" else []
    chosen, answers = blocks_of(model, layers), []
    for shots in how.shots:
        draws = judge.draws(shots)
        for pool in pools:
            for protocol in simple:
                answers += judge.common(protocol, pool, layers, chosen, shots, draws)
        if "linear" in protocols and form != "common":
            answers += judge.published(form, layers, shots, draws, renderings)
        if attends:
            answers += judge.attentive(shots, draws)
    return answers


def predict(
    protocol: str,
    train: tuple[np.ndarray, np.ndarray],
    features: np.ndarray,
    ks: Sequence[int],
    seed: int,
    device: torch.device | str,
) -> dict[int | None, np.ndarray]:
    """Classes of the test features by k-NN, for each k, or by the common linear probe, under None.

    Args:
        protocol: `knn` or `linear`.
        train: features [S D] and labels [S].
        features: [Q D].
        ks: numbers of neighbors.
        seed: of the probe's held-out part.
        device: of k-NN.
    """
    if protocol == "linear":
        return {None: LinearProbe(seed=seed).fit(*train).predict(features).numpy()}
    values = torch.from_numpy(train[0]).to(device)
    votes = KNN(k=max(ks)).fit(values, train[1]).votes_for(features, ks)
    return {k: total.argmax(1).cpu().numpy() for k, total in votes.items()}


def fitting(ks: Sequence[int] | None, images: int) -> tuple[int, ...]:
    """The numbers of neighbors that so many training images can answer for; all images, where none is so small."""
    return tuple(k for k in ks or KS if k <= images) or (images,)


def check_neighbors(ks: Sequence[int] | None, sizes: dict[str, int], note: Note) -> None:
    """Say which k too few training images leave out; each number of labels has its own.

    Args:
        ks: what was asked for; None: `KS`.
        sizes: training images by the number of labels, as it was asked for: all, 10%, 5.
        note: told.
    Raises:
        ValueError: no number of labels has images enough for a k that was asked for.
    """
    most = max(sizes.values())
    wrong = [k for k in ks or () if not 1 <= k <= most]
    if wrong:
        raise ValueError(f"--k {wrong[0]} with {most} training images; choose k between 1 and {most}")
    for shots, images in sizes.items():
        dropped, kept = ", ".join(str(k) for k in ks or KS if k > images), fitting(ks, images)
        if dropped:
            where = "" if shots == ALL else f" on {shots} of the labels" if "%" in shots else f" on {shots} a class"
            what = f"{images} in place of {dropped}" if kept == (images,) else f"{dropped} left out"
            note(f"k-NN{where}: k = {what}, there are {images} training images only")


class _Judge:
    """The features of one model, and the protocols that read them."""

    def __init__(self, model: EvalModel, train: Part, test: Part, how: Settings):
        self.model, self.train, self.test, self.how = model, train, test, how

    def draws(self, shots: Shots | None) -> list[tuple[int, np.ndarray]]:
        """Seeds, and the training images of each."""
        if shots is None:
            return [(self.how.seed, np.arange(len(self.train.labels)))]
        seeds = range(self.how.seed, self.how.seed + self.how.seeds)
        return [(seed, shots.draw(self.train.labels, seed)) for seed in seeds]

    def common(self, protocol, pool, layers, blocks, shots, draws) -> list[Answer]:
        """k-NN or the common linear probe, of the last layer, of every layer, or of the best."""
        candidates: list[str | int] = ["last"] if layers == "last" else [*blocks, "last"]
        ks = fitting(self.how.ks, len(draws[0][1]))
        wanted: dict[int | None, list[str | int]] = dict.fromkeys(ks if protocol == "knn" else (None,), candidates)
        if layers == "best" and len(candidates) > 1:
            wanted = {k: [layer] for k, layer in self._best(protocol, pool, candidates, ks, *draws[0]).items()}
        said: dict[tuple[str | int, int | None], list[np.ndarray]] = {}
        for layer in candidates:
            of_layer = [k for k, chosen in wanted.items() if layer in chosen]
            if not of_layer:
                continue
            known, asked = self.train.matrix(layer, pool), self.test.matrix(layer, pool)
            for seed, rows in draws:
                known_here, numbers = (known[rows], self.train.labels[rows]), tuple(k for k in of_layer if k)
                for k, predicted in predict(protocol, known_here, asked, numbers, seed, self.how.device).items():
                    said.setdefault((layer, k), []).append(predicted)
        return [
            self._answer(protocol, pool, layer, k, said[layer, k], draws, shots)
            for k, chosen in wanted.items()
            for layer in chosen
        ]

    def _best(self, protocol, pool, candidates, ks, seed, rows) -> dict[int | None, str | int]:
        """For each k, the layer whose features answer best for held-out training images."""
        labels = self.train.labels[rows]
        parts = held_out_parts(labels, seed)
        if not parts:
            raise ValueError("the best layer cannot be chosen: a class has one training image; give --layers last")
        room = min(int((~held).sum()) for held in parts)
        numbers: dict[int | None, int | None] = {k: min(k, room) for k in ks} if protocol == "knn" else {None: None}
        scores: dict[int | None, list[float]] = {k: [] for k in numbers}
        for layer in candidates:
            features, found = self.train.matrix(layer, pool)[rows], {k: [] for k in numbers}
            for held in parts:
                known, asked = (features[~held], labels[~held]), tuple(k for k in numbers.values() if k)
                said = predict(protocol, known, features[held], asked, seed, self.how.device)
                for k, least in numbers.items():
                    found[k].append(top1(said[least], labels[held]))
            for k, each in found.items():
                scores[k].append(float(np.mean(each)))
        return {k: candidates[int(np.argmax(each))] for k, each in scores.items()}

    def attentive(self, shots, draws) -> list[Answer]:
        """The attentive probe on the last layer's patches."""
        backbone, said, rates = self.model.backbone, [], []
        assert backbone is not None
        known, asked = self.train.rows(["patches"]), self.test.rows(["patches"])
        for seed, rows in draws:
            probe = AttentiveProbe(backbone.config.heads, seed=seed)
            fitted = probe.fit(known.of(rows), self.train.labels[rows], self.how.device)
            said.append(fitted.predict(asked, self.how.device))
            rates.append(fitted.rate)
        return [self._answer("attentive", "patches", "last", None, said, draws, shots)]

    def published(self, form, layers, shots, draws, renderings: list[Part]) -> list[Answer]:
        """A method's own linear probe."""
        backbone, found = self.model.backbone, {}
        assert backbone is not None
        for seed, rows in draws:
            views = [
                lambda names, part=part, rows=rows: part.rows(names).of(rows) for part in renderings or [self.train]
            ]
            inputs = published.Inputs(views, self.test.rows)
            every = {"every_layer": layers == "all", "seed": seed, "device": self.how.device}
            for probed in published.probe(form, backbone, inputs, self.train.labels[rows], **every):
                place = (probed.features, probed.layer if layers == "all" or form != "beit" else "best")
                found.setdefault(place, []).append(probed)
        answers = []
        for each in found.values():
            extra = {"probe": form, "augment": self.how.augment, **each[0].settings}
            said = [probed.predicted for probed in each]
            answers.append(self._answer("linear", each[0].features, each[0].layer, None, said, draws, shots, extra))
        return answers

    def _answer(self, protocol, pool, layer, k, predicted, draws, shots, extra=None) -> Answer:
        names, seeds = (self.model.name, protocol, pool, layer, k), [seed for seed, _ in draws]
        return scored(
            names, predicted, self.test.labels, self.test.places, len(draws[0][1]),
            seed=self.how.seed, shots=shots, seeds=seeds, extra=extra,
        )  # fmt: skip


def _renderings(model, form, sources, truth, how: Settings, given, data) -> list[Part]:
    """Random crops of the training images, `--augment` of each; none: the center crop is all."""
    more, deep = published.needs(form, model.backbone)
    cuts = [
        RandomCut(model.size, n, "bicubic" if form == "mae" else "bilinear", form == "mae", how.seed)
        for n in range(how.augment)
    ]
    return [
        take(model, sources[0], truth[0], more, deep, how, cut=cut, data=data[0], part=f"crop {cut.number}", **given)
        for cut in cuts
    ]
