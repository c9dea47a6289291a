"""B6, collapse diagnostics: whether a teacher says different things of different images."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..evaluate.features import evaluating
from ..methods.ibot import IBOT
from . import charts
from .intervals import Estimate, mean_of
from .subject import Ask, Finding, Subject, look, minibatches, names

WHAT = "collapse"
LOGGED = ("entropy", "kl_uniform", "usage", "agreement", "center_norm")
"""what training logs of the [CLS] targets; the same with `patch_` in front for patches"""


class Diagnosis(NamedTuple):
    """Of a teacher's outputs P over prototypes."""

    entropy: Float[np.ndarray, "S"]
    """H(P) of each image, in [0, ln K]: ln K without sharpening"""
    kl_uniform: float
    """ln K - H(mean of P), in [0, ln K]: ln K without centering, when one prototype takes all"""
    information: float
    """H(mean of P) - mean of H(P): nats that an output has about its image; 0 is collapse, either way"""
    usage: float
    """fraction of the prototypes that are some image's largest"""


def diagnose(outputs: Float[Tensor, "S K"]) -> Diagnosis:
    """Describe a teacher's outputs (DINO, Caron et al. 2021, section 5.3).

    Args:
        outputs: probabilities, centered and sharpened; each row adds up to 1.
    Returns:
        a uniform output gives an entropy of ln K, a KL of 0 and no information.
    """
    p = outputs.double()
    entropy, mean = torch.special.entr(p).sum(1), p.mean(0)
    whole, k = float(torch.special.entr(mean).sum()), p.shape[1]
    usage = len(p.argmax(1).unique()) / k
    return Diagnosis(entropy.cpu().numpy(), math.log(k) - whole, whole - float(entropy.mean()), usage)


@torch.no_grad()
def measure(subject: Subject, ask: Ask) -> tuple[Diagnosis, Float[np.ndarray, "S"]]:
    """A teacher's [CLS] outputs for DATA, and whether the student's largest prototype is the same, image by image."""
    method = subject.of(WHAT, IBOT)
    tau, outputs, agreement = method.config.temperatures(subject.at())[0], [], []
    pictures = look(subject, ask.source(WHAT), ask)
    with evaluating(method):
        for images in minibatches(subject, pictures):
            t, s = (
                network.head.cls(network.head.embed(network.vit(images).prefix[:, 0])).float()
                for network in (method.teacher, method.student)
            )
            p = ((t - method.center) / tau).softmax(-1)
            outputs.append(p.cpu())
            agreement.append((p.argmax(1) == s.argmax(1)).cpu())
    return diagnose(torch.cat(outputs)), torch.cat(agreement).double().numpy()


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Draw what training logged, and measure the teacher on DATA where DATA is given."""
    note = (
        "Lines: as logged on training batches; dots: measured on DATA with the teacher of this checkpoint, 95 % "
        "intervals over images. Entropy of one image's output (solid) and of the mean output (dashed): when they "
        "meet, the output says nothing of the image, at 0 for lack of centering, at ln K for lack of sharpening."
    )
    titles = ["entropy, nats", "prototypes used, agreement", "|center|"]
    figure, (left, middle, last) = charts.panels(titles, note=note, width=2.9)
    numbers: dict[str, Any] = {}
    for i, (subject, label) in enumerate(zip(subjects, names(subjects), strict=True)):
        method, ink, found = subject.of(WHAT, IBOT), charts.color(i), {}
        most = math.log(method.config.prototypes)
        lines = [line for line in (subject.run.metrics() if subject.run else []) if "entropy" in line]
        steps = np.array([line["step"] for line in lines], np.float64)
        logged = {name: np.array([line[name] for line in lines]) for name in LOGGED if lines}
        if lines:
            left.plot(steps, logged["entropy"], color=ink, linewidth=1.2, label=label)
            left.plot(steps, most - logged["kl_uniform"], color=ink, linewidth=1.0, linestyle="--")
            middle.plot(steps, logged["usage"], color=ink, linewidth=1.2, label=f"{label}: used")
            middle.plot(steps, logged["agreement"], color=ink, linewidth=1.0, linestyle="--", label="agreement")
            last.plot(steps, logged["center_norm"], color=ink, linewidth=1.2, label=label)
            found["logged"] = {name: values[-1] for name, values in logged.items()}
        if ask.data is not None:
            seen, agreement = measure(subject, ask)
            entropy, agrees = mean_of(seen.entropy, ask.seed), mean_of(agreement, ask.seed)
            found |= {
                "images": len(agreement), "entropy": entropy, "kl_uniform": seen.kl_uniform, "usage": seen.usage,
                "information": seen.information, "agreement": agrees, "ln_K": most,
                "center_norm": float(torch.linalg.vector_norm(method.center)),
            }  # fmt: skip
            _dot(left, subject.step, entropy, ink)
            left.plot(subject.step, most - seen.kl_uniform, "s", color=ink, markersize=4, fillstyle="none")
            _dot(middle, subject.step, agrees, ink)
            middle.plot(subject.step, seen.usage, "s", color=ink, markersize=4, fillstyle="none")
            last.plot(subject.step, found["center_norm"], "o", color=ink, markersize=4)
        if not found:
            raise ValueError(f"{subject.name} has logged nothing and there are no images; give DATA")
        charts.level(left, most, f"ln {method.config.prototypes}")
        numbers[subject.name] = found
    for axes in (left, middle, last):
        charts.labels(axes, "step", "")
        axes.set_ylim(bottom=0)
        charts.legend(axes)
    charts.percent(middle)
    return Finding(numbers, figure)


def _dot(axes: charts.Axes, x: float, estimate: Estimate, ink: str) -> None:
    spread = [[float(estimate.value - estimate.low)], [float(estimate.high - estimate.value)]]
    axes.errorbar(x, float(estimate.value), yerr=spread, fmt="o", color=ink, markersize=4, elinewidth=1)
