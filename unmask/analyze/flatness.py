"""B4, flatness: how the loss rises around the student and around the teacher.

Three measures on fixed views, masks, centers and targets: along the straight line through both networks; at
random points around each, as far away in every filter in proportion to its norm (Li et al. 2018); and the trace
of the Hessian (Hutchinson 1990). MAE and BEiT have one network: the last two are measured on it.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..methods.base import Batch, Method, Progress
from ..methods.ibot import IBOT
from ..randomness import fold
from . import charts
from .intervals import Estimate
from .subject import Ask, Finding, Subject, names, training_batches

WHAT = "flatness"
ALPHAS = tuple(np.round(np.linspace(-0.5, 1.5, 17), 3).tolist())
"""places on the line: 0 is the student, 1 the teacher"""
SIGMAS = (0.01, 0.02, 0.05)
"""sizes of a perturbation, relative to each filter's norm"""
DRAWS = 8
"""perturbations of one size"""
PROBES = 32
"""Rademacher vectors"""

Loss = Callable[[], Tensor]


def _moments(values: Sequence[float]) -> Estimate:
    """Mean of independent draws, with a normal 95 % interval."""
    array = np.asarray(values, np.float64)
    half = 1.96 * array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else 0.0
    mean = array.mean()
    return Estimate(np.asarray(mean), np.asarray(mean - half), np.asarray(mean + half))


@torch.no_grad()
def line(
    start: Sequence[Tensor], end: Sequence[Tensor], parameters: Sequence[nn.Parameter], loss: Loss,
    alphas: Sequence[float] = ALPHAS,
) -> list[float]:  # fmt: skip
    """Loss at start + alpha (end - start); the parameters come back as they were."""
    before, found = [each.clone() for each in parameters], []
    for alpha in alphas:
        for parameter, a, b in zip(parameters, start, end, strict=True):
            parameter.copy_(torch.lerp(a, b, alpha))
        found.append(float(loss()))
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)
    return found


def filter_normalized(
    parameters: Sequence[Float[Tensor, "*_"]], sigma: float, generator: torch.Generator
) -> list[Float[Tensor, "*_"]]:
    """A random direction whose every filter w_f is as long as sigma |w_f|: sigma |w_f| e_f / |e_f|.

    Li et al. 2018, section 4: filters are the rows of a matrix or the output channels of a convolution. Biases
    and gains, which have one number a filter, stay as they are, as in the original.
    """
    found = []
    for weight in parameters:
        if weight.ndim < 2:
            found.append(torch.zeros_like(weight))
            continue
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        axes = tuple(range(1, weight.ndim))
        length = weight.detach().square().sum(axes, keepdim=True).sqrt()
        found.append(sigma * noise * length / noise.square().sum(axes, keepdim=True).sqrt().clamp(min=1e-12))
    return found


@torch.no_grad()
def sharpness(
    parameters: Sequence[nn.Parameter], loss: Loss, seed: int = 0, sigmas: Sequence[float] = SIGMAS, draws: int = DRAWS
) -> dict[float, Estimate]:
    """E over e of L(theta + filter-normalized e) - L(theta), for each size; the parameters come back as they were.

    The same seed gives the same noise to every network of one shape.
    """
    base, before, found = float(loss()), [each.clone() for each in parameters], {}
    for sigma in sigmas:
        rises = []
        for i in range(draws):
            generator = torch.Generator().manual_seed(fold(seed, "flatness", "noise", i))
            for parameter, step in zip(parameters, filter_normalized(before, sigma, generator), strict=True):
                parameter.add_(step)
            rises.append(float(loss()) - base)
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        found[sigma] = _moments(rises)
    return found


def hessian_trace(parameters: Sequence[Tensor], loss: Loss, seed: int = 0, probes: int = PROBES) -> Estimate:
    """Trace of the Hessian of the loss: mean over v of v^T H v, v Rademacher (Hutchinson 1990).

    Exact at every probe where H is diagonal. H v is the gradient of (gradient . v).

    Args:
        parameters: that the Hessian is of.
        loss: twice differentiable, of the same value at every call.
        seed: of the probes.
        probes: at least 32, section 8.
    """
    values = []
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        value = loss()
        gradient = torch.autograd.grad(value, parameters, create_graph=True)
        for i in range(probes):
            generator = torch.Generator().manual_seed(fold(seed, "flatness", "probe", i))
            probe = [torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1 for p in parameters]
            along = sum((g * v).sum() for g, v in zip(gradient, probe, strict=True))
            assert isinstance(along, Tensor)
            product = torch.autograd.grad(along, parameters, retain_graph=True, allow_unused=True)
            values.append(sum(float((h * v).sum()) for h, v in zip(product, probe, strict=True) if h is not None))
    return _moments(values)


def loss_of(method: Method, batches: Sequence[Batch], at: Progress) -> Loss:
    """The mean loss over fixed batches, without drop path; of an iBOT, that of [CLS] alone.

    The teacher is not moved: its targets are the same wherever the student is.
    """
    method.eval()
    if isinstance(method, IBOT):
        method.config = dataclasses.replace(method.config, patch_weight=0.0, koleo_weight=0.0)
    return lambda: torch.stack([method(batch, at).loss for batch in batches]).mean()


def networks(method: Method) -> dict[str, list[Tensor]]:
    """The weights to look around: a student's and a teacher's by the student's names, or the trained network's."""
    if not isinstance(method, IBOT):
        return {"network": [each.detach().clone() for each in moving(method)]}
    student = {name: each.detach().clone() for name, each in method.student.named_parameters()}
    teacher = student | {n: each.detach().clone() for n, each in method.teacher.named_parameters() if n in student}
    kept = [name for name, each in method.student.named_parameters() if each.requires_grad]
    return {name: [each[n] for n in kept] for name, each in (("student", student), ("teacher", teacher))}


def moving(method: Method) -> list[nn.Parameter]:
    """The parameters that training moves by gradient."""
    network = method.student if isinstance(method, IBOT) else method
    return [each for each in network.parameters() if each.requires_grad]


def measure(subject: Subject, ask: Ask) -> dict[str, Any]:
    """All three measures of one model, on views of DATA drawn by the seed."""
    method = copy.deepcopy(subject.method)
    batches, at = list(training_batches(subject, ask.source(WHAT), ask)), subject.at()
    loss, parameters, places = loss_of(method, batches, at), moving(method), networks(method)
    found: dict[str, Any] = {"images": sum(len(batch.views[0]) for batch in batches)}
    if len(places) == 2:
        found["line"] = {"alpha": ALPHAS, "loss": line(places["student"], places["teacher"], parameters, loss)}
    small = loss_of(method, batches[:1], at)
    for name, weights in places.items():
        with torch.no_grad():
            for parameter, value in zip(parameters, weights, strict=True):
                parameter.copy_(value)
        found[name] = {
            "loss": float(loss().detach()),
            "sharpness": sharpness(parameters, loss, ask.seed),
            "hessian_trace": hessian_trace(parameters, small, ask.seed),
        }
    return found


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Measure models on views of DATA, as they are trained on."""
    ask.source(WHAT)
    note = (
        "Loss of the student ([CLS] alone for iBOT, the whole loss of a model without a teacher) on fixed views and "
        "targets, no drop path. Left: on the line through both networks, 0 = student, 1 = teacher. Middle: mean rise "
        "after a random step of sigma times each filter's norm. Right: trace of the Hessian, "
        f"{PROBES} Rademacher probes, first {64} images. 95 % intervals over draws. Losses of different methods do "
        "not compare; compare the two networks of one run."
    )
    titles = ["along the line", "rise at distance sigma", "Hessian trace"]
    figure, (left, middle, last) = charts.panels(titles, note=note, width=2.9)
    numbers, i, ticks = {}, 0, []
    for subject, label in zip(subjects, names(subjects), strict=True):
        found = numbers[subject.name] = measure(subject, ask)
        if "line" in found:
            left.plot(ALPHAS, found["line"]["loss"], color=charts.color(i), linewidth=1.4, label=label)
        for name in (name for name in ("student", "teacher", "network") if name in found):
            shown = label if name == "network" else f"{label}, {name}"
            rise, trace = list(found[name]["sharpness"].values()), found[name]["hessian_trace"]
            stacked = Estimate(*(np.array([getattr(each, part) for each in rise]) for part in Estimate._fields))
            charts.curve(middle, np.array(SIGMAS), stacked, charts.color(i), shown)
            last.errorbar(
                i, float(trace.value), yerr=float(trace.high - trace.value), fmt="o", color=charts.color(i), capsize=2
            )
            ticks.append(shown.replace(", ", "\n"))
            i += 1
    for alpha in (0, 1):
        left.axvline(alpha, color=charts.FAINT, linewidth=0.8, linestyle="--")
    charts.labels(left, "alpha", "")
    charts.labels(middle, "sigma", "")
    last.set_xticks(range(len(ticks)), ticks)
    last.set_xlim(-0.6, len(ticks) - 0.4)
    charts.legend(left)
    charts.legend(middle)
    return Finding(numbers, figure)
