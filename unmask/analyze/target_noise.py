"""B3, target noise: how much a network's answers jitter from step to step, teacher against student."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..evaluate.features import evaluating
from ..methods.ibot import IBOT, Network
from . import charts
from .averaging import kept_variance
from .continuation import continued, momentum
from .intervals import Estimate, mean_of, ratio_of
from .subject import Ask, Finding, Subject, look, minibatches, one

WHAT = "target-noise"
DISTANCES = (1, 10, 100)
"""steps between two answers"""


class Answer(NamedTuple):
    """What a network says of the images at one step."""

    feature: Float[Tensor, "S D"]
    """[CLS]"""
    target: Float[Tensor, "S K"]
    """P = softmax((logits - C) / tau), with the teacher's center and temperature for both networks"""


def jitter(a: Float[Tensor, "S D"], b: Float[Tensor, "S D"]) -> Float[Tensor, "S"]:
    """J = 1 - cos(f_t(x), f_(t+d)(x)) for each image x; 0 when the direction stays, 1 when all is forgotten."""
    return 1 - F.cosine_similarity(a.double(), b.double(), dim=1)


def target_variance(a: Float[Tensor, "S K"], b: Float[Tensor, "S K"]) -> Float[Tensor, "S"]:
    """Variance of the targets over two steps, sum over prototypes of (P_t - P_(t+d))^2 / 2, for each image."""
    return (a.double() - b.double()).square().sum(1) / 2


def predicted(m: float, distance: int) -> float:
    """Ratio of the teacher's jitter to the student's, were the students' noise independent.

    An EMA keeps (1 - m) / (1 + m) of the variance, and its values d steps apart correlate by m^d, so that
    differences keep (1 - m) / (1 + m) (1 - m^d).
    """
    return kept_variance(m) * (1 - m**distance)


@torch.no_grad()
def answer(network: Network, method: IBOT, images: Sequence[Float[Tensor, "_ C h w"]], temperature: float) -> Answer:
    """Ask one of the two networks about images, as a teacher is asked."""
    features, targets = [], []
    with evaluating(network):
        for batch in images:
            cls = network.vit(batch).prefix[:, 0]
            logits = network.head.cls(network.head.embed(cls)).float()
            features.append(cls.float().cpu())
            targets.append(((logits - method.center) / temperature).softmax(-1).cpu())
    return Answer(torch.cat(features), torch.cat(targets))


def measure(subject: Subject, ask: Ask) -> tuple[list[int], dict[str, Float[np.ndarray, "S n 2"]]]:
    """Jitter and target variance of both networks while the run goes on.

    Answers are compared with those at the steps 0, 100, 200, ... of the continuation.

    Returns:
        distances in steps, and for student and teacher [images, distances, (jitter, variance)].
    """
    if ask.train is None:
        raise ValueError(f"{WHAT} goes on training; give the images with --train DATA")
    distances = [d for d in DISTANCES if d <= ask.steps]
    period, last = max(distances), ask.steps - max(distances)
    anchors = list(range(0, last + 1, period))
    wanted = {anchor + d for anchor in anchors for d in (0, *distances)}
    images = list(minibatches(subject, look(subject, ask.source(WHAT), ask)))
    method = subject.of(WHAT, IBOT)
    temperature = method.config.temperatures(subject.at())[0]
    before: dict[str, Answer] = {}
    sums = {name: np.zeros((sum(map(len, images)), len(distances), 2)) for name in ("student", "teacher")}
    for i, now in enumerate(continued(subject, ask.train, ask, WHAT)):
        if i not in wanted:
            continue
        anchor = max((a for a in anchors if a < i), default=0)
        for name, network in (("student", now.student), ("teacher", now.teacher)):
            found = answer(network, now, images, temperature)
            if i - anchor in distances and i:
                place = distances.index(i - anchor)
                values = [
                    f(a, b).numpy() for f, a, b in zip((jitter, target_variance), before[name], found, strict=True)
                ]
                sums[name][:, place] += np.stack(values, 1)
            if i in anchors:
                before[name] = found
    return distances, {name: total / len(anchors) for name, total in sums.items()}


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Go on with one iBOT or DINO run, and compare both networks' answers on DATA."""
    (subject,) = one(subjects, WHAT)
    subject.of(WHAT, IBOT)
    m = momentum(subject)
    distances, found = measure(subject, ask)
    note = (
        f"While the run goes on from step {subject.step}, learning rate as it was there: answers d steps apart for "
        "the same images. Jitter: 1 - cosine of [CLS]. Targets: half the squared difference of softmax outputs, both "
        "with the teacher's center and temperature. Right: teacher over student; dashes: what averaging independent "
        f"noise with m = {m:.4f} would give. 95 % intervals over images."
    )
    titles = ["jitter of features", "variance of targets", "teacher / student"]
    figure, (left, middle, last) = charts.panels(titles, note=note, width=2.9)
    numbers: dict = {"images": len(found["student"]), "momentum": m, "distances": distances}
    for i, (name, values) in enumerate(found.items()):
        estimate = mean_of(values, ask.seed)
        numbers[name] = {"jitter": _part(estimate, 0), "target_variance": _part(estimate, 1)}
        for axes, part in ((left, 0), (middle, 1)):
            charts.curve(axes, np.array(distances), _part(estimate, part), charts.color(i), name)
    ratio = ratio_of(found["teacher"], found["student"], ask.seed)
    numbers |= {"ratio": {"jitter": _part(ratio, 0), "target_variance": _part(ratio, 1)}}
    numbers["predicted_ratio"] = [predicted(m, d) for d in distances]
    for i, name in enumerate(("features", "targets")):
        charts.curve(last, np.array(distances), _part(ratio, i), charts.color(2 + i), name)
    last.plot(distances, numbers["predicted_ratio"], "--", color=charts.FAINT, label="independent noise")
    for axes in (left, middle, last):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(distances, list(map(str, distances)))
        axes.minorticks_off()
        charts.labels(axes, "d, steps", "")
        charts.legend(axes)
    return Finding({subject.name: numbers}, figure)


def _part(estimate: Estimate, i: int) -> Estimate:
    return Estimate(*(each[..., i] for each in estimate))
