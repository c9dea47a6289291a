"""A6, range of dependence: from how far away a hidden patch is predicted."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..masks import visible_indices
from ..methods.base import Method
from ..methods.beit import BEiT
from ..methods.ibot import IBOT
from ..methods.mae import MAE
from ..randomness import key
from . import charts
from .intervals import Estimate, percentiles, resamples
from .subject import Ask, Finding, Pictures, Subject, draw_masks, look, names, normalized, twins

WHAT = "range"
NAMES = {MAE: "pixels", BEiT: "tokens", IBOT: "teacher's patches"}


def window(grid: tuple[int, int], at: Int[Tensor, "B"], radius: int) -> Bool[Tensor, "B N"]:
    """Patches whose Chebyshev distance to patch `at` is at most `radius`."""
    place = torch.arange(grid[0] * grid[1], device=at.device)
    rows = (place // grid[1] - (at // grid[1])[:, None]).abs()
    columns = (place % grid[1] - (at % grid[1])[:, None]).abs()
    return torch.maximum(rows, columns) <= radius


def gain(losses: Float[np.ndarray, "*b R"]) -> Float[np.ndarray, "*b R"]:
    """What a context of each radius gives of what the whole context gives.

    G(R) = (L(0) - L(R)) / (L(0) - L(inf)): G(0) = 0 and G(inf) = 1. nan where the context does not help.

    Args:
        losses: L at growing radius; the first is 0 (nothing to see), the last sees all that is visible.
    """
    whole = losses[..., :1] - losses[..., -1:]
    return (losses[..., :1] - losses) / np.where(whole > 0, whole, np.nan)


def reach(radii: Sequence[int], gains: Float[np.ndarray, "R"], part: float) -> float:
    """The smallest radius whose gain is `part`, between the measured ones by a straight line; R_50, R_90."""
    for i in range(1, len(radii)):
        if gains[i] >= part:
            low, high = gains[i - 1], gains[i]
            return float(radii[i - 1] + (part - low) / (high - low) * (radii[i] - radii[i - 1]))
    return float("nan")


@torch.no_grad()
def loss_at(
    method: Method,
    images: Float[Tensor, "B C h w"],
    tokens: Int[Tensor, "B N"] | None,
    visible: Bool[Tensor, "B N"],
    at: Int[Tensor, "B"],
    temperature: float = 0.07,
) -> Float[Tensor, "B"]:
    """The method's own loss at one hidden patch of each image, given the visible ones.

    MAE: the others are removed from the encoder's input; BEiT and iBOT: replaced by the mask token.

    Args:
        method: an MAE, BEiT or iBOT in evaluation mode.
        images: normalized.
        tokens: for BEiT, the tokenizer's ids.
        visible: what may be seen.
        at: the patch that is scored.
        temperature: for iBOT, of the teacher's patches.
    """
    rows = torch.arange(len(images), device=images.device)
    if isinstance(method, MAE):
        target, counts = method.target(images)[rows, at], visible.sum(1)
        losses = images.new_zeros(len(images))
        for count in counts.unique().tolist():  # an encoder without padding: images with as many patches together
            some = (counts == count).nonzero()[:, 0]
            keep = visible_indices(~visible[some], count)
            pixels = method.decoder(method.encoder(images[some], keep=keep), keep)
            losses[some] = (pixels[torch.arange(len(some)), at[some]].float() - target[some]).square().mean(-1)
        return losses
    if isinstance(method, BEiT):
        assert tokens is not None
        patches = method.vit(images, hidden=~visible).patches[rows, at]
        return F.cross_entropy(method.lm_head(patches).float(), tokens[rows, at], reduction="none")
    assert isinstance(method, IBOT)
    student, teacher = method.student, method.teacher
    s = student.head.patches(student.head.embed(student.vit(images, hidden=~visible).patches[rows, at])).float()
    t = teacher.head.patches(teacher.head.embed(teacher.vit(images).patches[rows, at])).float()
    t = ((t - method.patch_center) / temperature).softmax(-1)
    return -(t * (s / method.config.student_temperature).log_softmax(-1)).sum(-1)


def measure(subject: Subject, pictures: Pictures, seed: int) -> tuple[list[int], Float[np.ndarray, "S R"]]:
    """Losses at one hidden patch of each image, drawn by the seed, for every radius.

    Returns:
        radii, and the losses: the last radius spans the grid, and sees all that the mask leaves visible.
    """
    method = subject.of(WHAT, MAE, BEiT, IBOT)
    masks = draw_masks(subject, len(pictures.images), seed)
    grid = subject.network(WHAT).config.grid
    hidden = [np.flatnonzero(mask) for mask in masks.cpu().numpy()]
    chosen = torch.tensor([int(key(seed, "range", i).choice(places)) for i, places in enumerate(hidden)])
    chosen, radii = chosen.to(subject.device), list(range(max(grid)))
    temperature = method.config.temperatures(subject.at())[1] if isinstance(method, IBOT) else 1.0
    rows = []
    for images, mask, at in zip(*(each.split(64) for each in (pictures.images, masks, chosen)), strict=True):
        x = normalized(subject, images)
        tokens = method.tokenizer.encode(twins(subject, images)) if isinstance(method, BEiT) else None
        sets = [~mask & window(grid, at, radius) for radius in radii]
        rows.append(torch.stack([loss_at(method, x, tokens, seen, at, temperature) for seen in sets], dim=1).cpu())
    return radii, torch.cat(rows).double().numpy()


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Measure models that predict hidden patches, on DATA, each with its own masks and its own loss."""
    source, numbers = ask.source(WHAT), {}
    note = (
        "One hidden patch an image, predicted from the visible patches within R rows and columns alone; each model "
        "with its own masks and loss. Left: the loss. Right: the part of what all visible patches give (0 = nothing "
        "seen, 1 = all). 95 % intervals over images. A curve that rises early predicts from its neighborhood."
    )
    figure, (loss, part) = charts.panels(["loss at the patch", "gain G(R)"], note=note, width=3.4)
    for i, (subject, label) in enumerate(zip(subjects, names(subjects), strict=True)):
        if isinstance(subject.method, IBOT) and not subject.method.config.masks:
            raise ValueError(f"{subject.name} is a DINO, which hides no patches; range is measured on MAE, BEiT, iBOT")
        radii, losses = measure(subject, look(subject, source, ask), ask.seed)
        drawn = resamples(len(losses), ask.seed) @ losses
        means = Estimate(losses.mean(0), *percentiles(drawn))
        gains = Estimate(gain(losses.mean(0)), *percentiles(gain(drawn)))
        x, ink = np.array(radii), charts.color(i)
        target = NAMES[type(subject.method)]
        charts.curve(loss, x, means, ink, f"{label}: {target}")
        charts.curve(part, x, gains, ink, label)
        half, most = (reach(radii, gains.value, share) for share in (0.5, 0.9))
        numbers[subject.name] = {
            "images": len(losses), "target": target, "radii": radii, "loss": means, "gain": gains,
            "R_50": half, "R_90": most,
        }  # fmt: skip
    for axes in (loss, part):
        charts.labels(axes, "R, patches", "")
        charts.whole(axes)
    part.set_ylim(-0.1, 1.15)
    charts.legend(loss)
    charts.legend(part, loc="lower right")
    return Finding(numbers, figure)
