"""A8, linear CKA: how alike the representations of layers and models are (Kornblith et al. 2019)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..evaluate.features import evaluating
from . import charts
from .subject import Ask, Finding, Pictures, Subject, look, minibatches, names

WHAT = "cka"
MINIBATCH = 256
"""images of one estimate of HSIC; the estimates are averaged (Nguyen et al. 2021)"""


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
    """Similarity of two sets of features of the same n images, all at once: biased towards 1 when n < p.

    With columns centered, |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F); in [0, 1]; 1 for Y = X Q with orthogonal Q.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    return float((y.T @ x).square().sum() / ((x.T @ x).square().sum() * (y.T @ y).square().sum()).sqrt())


def hsic(k: Float[Tensor, "a n n"], l: Float[Tensor, "b n n"]) -> Float[Tensor, "a b"]:  # noqa: E741 - the paper's
    """Unbiased HSIC of all pairs of two lists of Gram matrices of the same n images (Song et al. 2012).

    HSIC_1(K, L) = [tr(K~ L~) + 1^T K~ 1 1^T L~ 1 / ((n-1)(n-2)) - 2 / (n-2) 1^T K~ L~ 1] / (n (n-3)), with K~ the
    matrix K whose diagonal is 0.

    Raises:
        ValueError: n < 4.
    """
    n = k.shape[-1]
    if n < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 images and has {n}; raise --count")
    off = 1 - torch.eye(n, dtype=torch.float64, device=k.device)
    k, l = k.double() * off, l.double() * off  # noqa: E741
    rows_k, rows_l = k.sum(-1), l.sum(-1)
    trace = k.flatten(1) @ l.flatten(1).T
    total = rows_k.sum(1)[:, None] * rows_l.sum(1)[None] / ((n - 1) * (n - 2))
    return (trace + total - 2 / (n - 2) * rows_k @ rows_l.T) / (n * (n - 3))


def minibatch_cka(batches: Iterator[Sequence[Float[Tensor, "n _"]]]) -> Float[np.ndarray, "a a"]:
    """CKA of all pairs of layers from minibatches: the unbiased HSICs are averaged, then divided.

    Args:
        batches: for each minibatch the features of every layer, of the same n >= 4 images.
    Returns:
        symmetric, 1 on the diagonal. Unbiased: unrelated features are around 0, on either side.
    """
    total: Tensor | None = None
    for layers in batches:
        grams = torch.stack([x.double() @ x.double().T for x in layers])
        found = hsic(grams, grams)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("CKA: no minibatch of features was given")
    scale = total.diagonal().clamp(min=0).sqrt()
    return (total / (scale[:, None] * scale[None])).cpu().numpy()


@torch.no_grad()
def layers_of(subject: Subject, pictures: Pictures) -> list[Float[Tensor, "S D"]]:
    """The mean patch of every block's output (before the final norm), image by image."""
    vit, rows = subject.network(WHAT), []
    with evaluating(vit):
        for images in minibatches(subject, pictures):
            blocks = vit(images, layers=tuple(range(len(vit.blocks))))
            rows.append(torch.stack([block.patches.mean(1) for block in blocks]).cpu())  # type: ignore[union-attr]
    return list(torch.cat(rows, dim=1))


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Compare every block of every model with every other, on DATA."""
    source, short = ask.source(WHAT), names(subjects)
    features = [layers_of(subject, look(subject, source, ask)) for subject in subjects]
    n, everything = len(features[0][0]), [layer for layers in features for layer in layers]
    parts = [part for part in torch.arange(n).split(MINIBATCH) if len(part) == min(MINIBATCH, n)]
    values = minibatch_cka([layer[part] for layer in everything] for part in parts)
    note = (
        f"Unbiased linear CKA of the mean patch of every block, {n} images. 1 = alike up to rotation and scale, "
        "0 = unrelated. Lines part the models; within one, blocks run from first to last."
    )
    side = min(6.0, 2.4 + 0.9 * len(subjects))
    figure, (axes,) = charts.panels([""], note=note, width=side + 0.9, height=side)
    drawn = axes.imshow(values, vmin=0, vmax=1, cmap="magma", interpolation="nearest")
    axes.grid(False)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    ends = np.cumsum([len(layers) for layers in features])
    middles = ends - np.array([len(layers) for layers in features]) / 2 - 0.5
    axes.set_xticks(middles, short)
    axes.set_yticks(middles, short, rotation=90, va="center")
    axes.tick_params(length=0)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="white", linewidth=1.5)
        axes.axvline(end - 0.5, color="white", linewidth=1.5)
    blocks = [f"{subject.name}/{i + 1}" for subject, f in zip(subjects, features, strict=True) for i in range(len(f))]
    return Finding({"images": n, "blocks": blocks, "cka": values}, figure)
