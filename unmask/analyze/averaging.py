"""B2, Polyak averaging: how much of a teacher's advantage is the average of its students.

A teacher is theta'_t = (1 - m) sum over k of m^k theta_(t-k). If students are theta* + noise, drawn anew each
step, the average keeps (1 - m) / (1 + m) of the noise's variance (Polyak and Juditsky 1992). Students of
consecutive steps are anything but independent, and theta* moves: the measure says how far the idea carries.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..evaluate.knn import KNN
from ..methods.base import Batch, Progress
from ..methods.ibot import IBOT
from ..vit import ViT
from . import charts
from .continuation import continued
from .intervals import Estimate, mean_of
from .subject import Ask, Finding, Pictures, Subject, embed, halves, look, minibatches, one, training_batches

WHAT = "averaging"
MOMENTA = (0.9, 0.99, 0.996, 0.999)
SNAPSHOTS = 8
"""students kept for the ensemble"""
WINDOWS = 5
"""windows of 1 / (1 - m) steps that an average must have seen: exp(-5) of the first student is left"""


def kept_variance(m: float) -> float:
    """Part of independent noise's variance that an EMA keeps: (1 - m) / (1 + m)."""
    return (1 - m) / (1 + m)


def fitting(steps: int, momenta: Sequence[float] = MOMENTA) -> list[float]:
    """The momenta whose average is settled after so many steps, 5 / (1 - m).

    Raises:
        ValueError: none.
    """
    found = [m for m in momenta if steps >= WINDOWS / (1 - m) - 1e-6]
    if not found:
        raise ValueError(f"--steps {steps} settles no average; m = {momenta[0]} needs {WINDOWS / (1 - momenta[0]):.0f}")
    return found


class Averages:
    """Averages of a sequence of weights, exact, in one pass: EMAs of several momenta and the mean of all.

    An EMA begins as the first weights, as a teacher does; they fade with m^t.
    """

    def __init__(self, momenta: Sequence[float]):
        self.momenta = tuple(momenta)
        self.count = 0
        self.emas: dict[float, list[Tensor]] = {}
        self.mean: list[Tensor] = []
        self.squares = 0.0
        """sum over the sequence of |theta|^2"""

    def add(self, weights: Sequence[Tensor]) -> None:
        """Take the next weights in; they are not kept."""
        weights = [each.detach().float() for each in weights]
        if not self.count:
            self.emas = {m: [each.clone() for each in weights] for m in self.momenta}
            self.mean = [torch.zeros_like(each, dtype=torch.float64) for each in weights]
        else:
            for m, ema in self.emas.items():
                torch._foreach_lerp_(ema, weights, 1 - m)
        self.count += 1
        for mean, each in zip(self.mean, weights, strict=True):
            mean.add_(each)
        self.squares += sum(float(each.double().square().sum()) for each in weights)

    def swa(self) -> list[Tensor]:
        """The arithmetic mean of all weights (Izmailov et al. 2018)."""
        return [(mean / self.count).float() for mean in self.mean]

    def kept(self) -> dict[float, float]:
        """Part of the students' variance that is left in the last value of each EMA.

        Variance is the squared distance from the mean of all n, summed over weights. For independent noise
        the mean shares 1 / n with each student and with each EMA; this is given back, so that the result
        is (1 - m) / (1 + m) then.
        """
        n = self.count
        center = [mean / n for mean in self.mean]
        spread = self.squares / n - sum(float(each.square().sum()) for each in center)  # (1 - 1/n) sigma^2
        found = {}
        for m, ema in self.emas.items():
            far = sum(float((e - c).square().sum()) for e, c in zip(ema, center, strict=True))
            found[m] = far / spread * (1 - 1 / n) + 1 / n if spread > 0 else math.nan
        return found


@torch.no_grad()
def put(network: nn.Module, weights: Sequence[Tensor]) -> None:
    """Give a network's parameters these values, in their order."""
    for parameter, value in zip(network.parameters(), weights, strict=True):
        parameter.copy_(value)


@torch.no_grad()
def student_loss(method: IBOT, batches: Sequence[Batch], at: Progress) -> float:
    """The whole loss of the student as it is, for fixed views, masks and teacher, without drop path."""
    method.eval()
    return float(np.mean([float(method(batch, at).loss) for batch in batches]))


def votes(vit: ViT, subject: Subject, known: Pictures, asked: Pictures, pool: str = "cls") -> Float[Tensor, "Q C"]:
    """k-NN votes for each asked image, adding up to 1."""
    bank, queries = (embed(vit, minibatches(subject, each))[pool] for each in (known, asked))
    classes = int(max(known.labels.max(), asked.labels.max())) + 1
    found = KNN(k=min(20, len(bank))).fit(bank, known.labels, classes).votes(queries)
    return found / found.sum(1, keepdim=True)


def _accuracy(found: Float[Tensor, "Q C"], truth: Int[np.ndarray, "Q"], seed: int) -> Estimate:
    return mean_of((found.argmax(1).numpy() == truth).astype(np.float64), seed)


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Go on with one iBOT or DINO run, and judge averages of its students on DATA."""
    (subject,) = one(subjects, WHAT)
    if ask.train is None:
        raise ValueError(f"{WHAT} goes on training; give the images with --train DATA")
    momenta = fitting(ask.steps)
    train, test = halves(ask.source(WHAT), replace(ask, train=None), WHAT)
    averages, snapshots, method = Averages(momenta), [], None
    every = max(ask.steps // SNAPSHOTS, 1)
    for i, method in enumerate(continued(subject, ask.train, ask, WHAT)):
        if i:  # the student before the first step is the checkpoint's
            averages.add(list(method.student.parameters()))
            if i % every == 0 and len(snapshots) < SNAPSHOTS:
                snapshots.append([each.detach().clone() for each in method.student.parameters()])
    assert method is not None
    known, asked = look(subject, train, replace(ask, count=10 * ask.count)), look(subject, test, ask)
    batches, at = list(training_batches(subject, ask.train, replace(ask, count=128))), subject.at()
    judged = copy.deepcopy(method)
    names = {"student": list(method.student.parameters())}
    names |= {f"EMA {m:g}": averages.emas[m] for m in momenta} | {"mean of all": averages.swa()}
    accuracy, losses = {}, {}
    for name, weights in names.items():
        put(judged.student, weights)
        accuracy[name] = _accuracy(votes(judged.student.vit, subject, known, asked), asked.labels, ask.seed)
        losses[name] = student_loss(judged, batches, at)
    total = torch.zeros(())
    for weights in snapshots:
        put(judged.student, weights)
        total = total + votes(judged.student.vit, subject, known, asked)
    accuracy["ensemble"] = _accuracy(total, asked.labels, ask.seed)
    teacher = votes(method.teacher.vit, subject, known, asked)
    accuracy["run's teacher"] = _accuracy(teacher, asked.labels, ask.seed)
    kept, predicted = averages.kept(), {m: kept_variance(m) for m in momenta}
    numbers = {
        subject.name: {
            "images": len(asked.labels), "steps": ask.steps, "from_step": subject.step, "momenta": momenta,
            "left_out": [m for m in MOMENTA if m not in momenta], "accuracy": accuracy, "loss": losses,
            "kept_variance": kept, "predicted": predicted,
        }
    }  # fmt: skip
    return Finding(numbers, _draw(accuracy, losses, kept, predicted, ask.steps, subject.step))


def _draw(
    accuracy: dict[str, Estimate],
    losses: dict[str, float],
    kept: dict[float, float],
    predicted: dict[float, float],
    steps: int,
    start: int,
) -> charts.Figure:
    note = (
        f"{steps} steps from step {start} on, with the learning rate as it was there. EMA: of those students; mean of "
        f"all: SWA; ensemble: mean k-NN votes of {SNAPSHOTS} students. k-NN (k 20) on [CLS], 95 % intervals over "
        "images. Loss: as the student's, for one fixed teacher. Right: squared distance from the mean of all, over "
        "that of single students; the dashes are what independent noise would leave."
    )
    figure, axes = charts.panels(["k-NN accuracy", "loss", "variance that is left"], note=note, width=3.0)
    for i, (name, found) in enumerate(accuracy.items()):
        axes[0].errorbar(
            float(found.value), i, xerr=[[float(found.value - found.low)], [float(found.high - found.value)]],
            fmt="o", color=charts.color(i), markersize=4, elinewidth=1,
        )  # fmt: skip
        if name in losses:
            axes[1].plot(losses[name], i, "o", color=charts.color(i), markersize=4)
    for panel in axes[:2]:
        panel.set_ylim(len(accuracy) - 0.5, -0.5)
        panel.grid(axis="x", color="#e6e8ec", linewidth=0.6)
    axes[0].set_yticks(range(len(accuracy)), list(accuracy))
    axes[1].set_yticks(range(len(accuracy)), [""] * len(accuracy))
    axes[0].xaxis.set_major_formatter(charts.PercentFormatter(1.0, decimals=0))
    x = [1 - m for m in kept]
    axes[2].set_xlim(min(x) / 2, 2 * max(x))  # before it is logarithmic: of a single m no limits can be guessed
    axes[2].loglog(x, list(kept.values()), "o-", color=charts.color(0), markersize=4, label="measured")
    axes[2].loglog(x, list(predicted.values()), "x--", color=charts.FAINT, markersize=4, label="(1 - m) / (1 + m)")
    charts.labels(axes[2], "1 - m", "")
    charts.legend(axes[2])
    return figure
