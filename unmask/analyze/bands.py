"""A4, band-limited accuracy: which spatial frequencies of an image the features are read from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..randomness import key
from . import charts
from .intervals import Estimate, mean_of, ratio_of
from .spectra import band_noise, high_pass, low_pass
from .subject import Ask, Finding, Pictures, Subject, embed, halves, look, minibatches, names, right

WHAT = "bands"
CUTS = (2, 4, 8, 16, 32, 64, 112)
"""cut-off frequencies, cycles an image; those that the image has no room for are left out"""
BANDS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""middles of the noise's bands, in units of pi a pixel; each reaches 0.1 to both sides"""
STRENGTH = 0.5
"""root mean square of the noise, where 1 is the standard deviation of the pixels"""

Change = Callable[[Float[Tensor, "B C h w"], int], Float[Tensor, "B C h w"]]
"""images, and which minibatch they are, to other images"""


def cuts_of(size: tuple[int, int]) -> tuple[float, ...]:
    """The cut-offs that lie inside an image's frequencies."""
    return tuple(float(cut) for cut in CUTS if cut <= max(size) / 2)


def area(cuts: Sequence[float], relative: Float[np.ndarray, "n"]) -> float:
    """Area under a curve of accuracy over log2 of the cut-off, over the width: its mean height.

    1 where filtering never hurts.
    """
    x = np.log2(np.asarray(cuts, np.float64))
    if len(x) == 1:
        return float(relative[0])
    return float(np.trapezoid(relative, x) / (x[-1] - x[0]))


def relative(filtered: Float[np.ndarray, "S n"], whole: Float[np.ndarray, "S"], seed: int = 0) -> Estimate:
    """Accuracy on changed images over accuracy on the images as they are, with a paired interval.

    Args:
        filtered: whether each image is classified rightly after each change, 0 or 1.
        whole: the same without a change.
        seed: of the bootstrap.
    """
    return ratio_of(filtered, whole[:, None], seed)


def measure(
    subject: Subject, known: Pictures, asked: Pictures, seed: int
) -> tuple[str, Float[np.ndarray, "S"], dict[str, Float[np.ndarray, "S n"]]]:
    """Judge one model: k-NN learns from images as they are, and is asked about changed ones.

    Returns:
        the pooling (the better one without a change), whether each image is right without a change, and
        with each change: `low`, `high` (cut-offs) and `noise` (bands).
    """
    vit = subject.network(WHAT)
    bank, plain_ = embed(vit, minibatches(subject, known)), embed(vit, minibatches(subject, asked))
    scores = {name: right(bank[name], known.labels, plain_[name], asked.labels) for name in bank}
    pool = max(scores, key=lambda name: scores[name].mean())

    def judge(change: Change) -> Float[np.ndarray, "S"]:
        changed = embed(vit, _changed(subject, asked, change))[pool]
        return right(bank[pool], known.labels, changed, asked.labels)

    def noisy(middle: float) -> Change:
        def add(images: Float[Tensor, "B C h w"], i: int) -> Float[Tensor, "B C h w"]:
            shape = (images.shape[0], images.shape[1], images.shape[2], images.shape[3])
            rng = key(seed, "bands", str(middle), i)
            return images + band_noise(shape, (middle - 0.1, middle + 0.1), STRENGTH, rng).to(images)

        return add

    cuts = cuts_of(subject.size)
    return (
        pool,
        scores[pool],
        {
            "low": np.stack([judge(lambda images, i, cut=cut: low_pass(images, cut)) for cut in cuts], 1),
            "high": np.stack([judge(lambda images, i, cut=cut: high_pass(images, cut)) for cut in cuts], 1),
            "noise": np.stack([judge(noisy(middle)) for middle in BANDS], 1),
        },
    )


def _changed(subject: Subject, pictures: Pictures, change: Change) -> Iterator[Float[Tensor, "_ C h w"]]:
    for i, images in enumerate(minibatches(subject, pictures)):
        with torch.no_grad():
            yield change(images, i)


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Judge the models on DATA; k-NN learns from --train, or from half of DATA."""
    train, test = halves(ask.source(WHAT), ask, WHAT)
    note = (
        "k-NN (k 20) on frozen features; it learns from images as they are. Accuracy on filtered images over "
        "accuracy on whole ones, paired 95 % intervals over test images. rho: cycles an image. Noise: "
        f"rms {STRENGTH} of the pixels' deviation within 0.1 pi of f."
    )
    titles = ["low-pass: rho <= cut", "high-pass: rho >= cut", "noise in a band"]
    figure, (low, high, noise) = charts.panels(titles, note=note, width=2.9)
    numbers = {}
    for i, (subject, label) in enumerate(zip(subjects, names(subjects), strict=True)):
        known = look(subject, train, replace(ask, count=10 * ask.count))
        pool, whole, found = measure(subject, known, look(subject, test, ask), ask.seed)
        cuts, ink, accuracy = cuts_of(subject.size), charts.color(i), mean_of(whole, ask.seed)
        shares = {name: relative(values, whole, ask.seed) for name, values in found.items()}
        charts.curve(low, np.array(cuts), shares["low"], ink, f"{label}: {float(accuracy.value):.0%} whole")
        charts.curve(high, np.array(cuts), shares["high"], ink)
        charts.curve(noise, np.array(BANDS), shares["noise"], ink)
        areas = {name: area(cuts, shares[name].value) for name in ("low", "high")}
        numbers[subject.name] = {
            "images": len(whole), "learned_from": len(known.labels), "features": pool, "accuracy": accuracy,
            "cuts": cuts, "bands": BANDS, "relative": shares, "area": areas,
        }  # fmt: skip
    for axes, x in ((low, "cut, cycles an image"), (high, "cut, cycles an image"), (noise, "f, units of pi a pixel")):
        charts.labels(axes, x, "relative accuracy" if axes is low else "")
        charts.percent(axes)
        axes.set_ylim(bottom=0)
    for axes in (low, high):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    charts.legend(low, loc="lower right")
    return Finding(numbers, figure)
