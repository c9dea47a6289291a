"""A7, what targets encode: dVAE tokens against the teacher's prototypes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torchvision.transforms.functional import adjust_hue

from ..evaluate.features import evaluating
from ..methods.beit import BEiT
from ..methods.codec import Codec
from ..methods.dvae import DVAE
from ..methods.ibot import IBOT
from ..randomness import key
from . import charts
from .intervals import Estimate, mean_of, ratio_of
from .spectra import low_pass
from .subject import Ask, Finding, Pictures, Subject, look, names, twins

WHAT = "targets"
CUT = 16
"""cycles an image that the low-pass keeps, or a quarter of the side where that is less: half of what a row can hold"""
HUE = 0.1
"""turn of the color circle, iBOT's largest"""


class Targets(NamedTuple):
    """Tokens of images and what is known of the same places."""

    ids: Int[np.ndarray, "S N"]
    color: Float[np.ndarray, "S N C"]
    """mean of the patch, by channel, in [0, 1]"""
    detail: Float[np.ndarray, "S N"]
    """gradient energy: mean squared difference of neighboring pixels"""
    blurred: Int[np.ndarray, "S N"]
    """tokens after a low-pass"""
    tinted: Int[np.ndarray, "S N"]
    """tokens after a turn of the hue"""


def mutual_information(ids: Int[np.ndarray, "S N"], labels: Int[np.ndarray, "S"]) -> float:
    """NMI of patches' tokens and their images' classes, in [0, 1]: what a token says of the class.

    It rises with the number of tokens by chance: compare with `chance`.
    """
    return float(normalized_mutual_info_score(labels.repeat(ids.shape[1]), ids.flatten()))


def chance(ids: Int[np.ndarray, "S N"], labels: Int[np.ndarray, "S"], seed: int = 0) -> float:
    """The NMI that the same tokens have with classes dealt out to the images at random."""
    return mutual_information(ids, key(seed, "targets", "shuffle").permutation(labels))


def explained(
    ids: Int[np.ndarray, "S N"], values: Float[np.ndarray, "S N C"], seed: int = 0
) -> tuple[Float[np.ndarray, "S"], Float[np.ndarray, "S"]]:
    """How well a linear map of the one-hot token predicts a property of the patch, on images it was not fit on.

    The least-squares map of a one-hot code is the mean value of each token. Images are dealt into two halves;
    each is predicted from the other. A token unknown there gets the half's mean.

    Returns:
        for each image the squared deviation from the mean that is explained, and the whole: their sums'
        ratio is R^2, which is 1 when tokens determine the property and at most about 0 when they say nothing.
    """
    side = key(seed, "targets", "halves").permutation(len(ids)) % 2 == 0
    left, whole = np.zeros(len(ids)), np.zeros(len(ids))
    for fit, asked in ((side, ~side), (~side, side)):
        tokens, place = np.unique(ids[fit], return_inverse=True)
        flat = values[fit].reshape(-1, values.shape[2])
        mean = flat.mean(0)
        sums = np.stack([np.bincount(place.flatten(), flat[:, c], len(tokens)) for c in range(flat.shape[1])], 1)
        means = sums / np.bincount(place.flatten(), minlength=len(tokens))[:, None]
        at = np.searchsorted(tokens, ids[asked]).clip(max=len(tokens) - 1)
        guess = np.where((tokens[at] == ids[asked])[..., None], means[at], mean)
        left[asked] = np.square(values[asked] - guess).sum((1, 2))
        whole[asked] = np.square(values[asked] - mean).sum((1, 2))
    return whole - left, whole


def flips(ids: Int[np.ndarray, "S N"], others: Int[np.ndarray, "S N"]) -> Float[np.ndarray, "S"]:
    """Part of an image's tokens that a change of the image changes."""
    return (ids != others).mean(1)


def gradient_energy(images: Float[Tensor, "B C h w"], grid: tuple[int, int]) -> Float[Tensor, "B N"]:
    """Mean squared difference of neighboring pixels, within each cell of a grid."""
    down = F.pad(images[:, :, 1:] - images[:, :, :-1], (0, 0, 0, 1))
    across = F.pad(images[..., 1:] - images[..., :-1], (0, 1))
    return F.adaptive_avg_pool2d((down.square() + across.square()).mean(1, keepdim=True), grid).flatten(1)


def cut_of(side: int) -> float:
    """Where the low-pass cuts an image of this side, in cycles an image."""
    return min(CUT, side / 4)


@torch.no_grad()
def prototypes(
    method: IBOT, images: Float[Tensor, "B C h w"], part: str = ""
) -> tuple[Int[Tensor, "B N"], tuple[int, int]]:
    """The largest centered prototype of every place, and the grid, from normalized images.

    Args:
        method: iBOT or DINO; it is left as it was.
        images: normalized.
        part: "student" for its backbone and head; else the teacher's.
    """
    network = method.student if part == "student" else method.teacher
    with evaluating(network):
        found, head = network.vit(images), network.head
        return (head.patches(head.embed(found.patches)) - method.patch_center).argmax(-1), found.grid


@torch.no_grad()
def tokens_of(subject: Subject, images: Float[Tensor, "B C t t"]) -> tuple[Int[Tensor, "B N"], tuple[int, int]]:
    """The most likely token of every place, and the grid, from images in [0, 1].

    A dVAE's or BEiT's tokens; of an iBOT (or DINO), the teacher's largest centered prototype.
    """
    method = subject.of(WHAT, DVAE, BEiT, IBOT)
    if isinstance(method, IBOT):
        data = subject.config.data
        mean, std = (torch.tensor(v).view(-1, 1, 1).to(images) for v in (data.mean, data.std))
        return prototypes(method, (images - mean) / std)
    codec = method.tokenizer() if isinstance(method, DVAE) else method.tokenizer
    assert isinstance(codec, Codec)
    return codec.encode(images), codec.grid(images)


def measure(subject: Subject, pictures: Pictures) -> Targets:
    """Tokens of images, of their low-passed and of their tinted copies, and the properties of the places."""
    rows = []
    for chunk in pictures.images.split(64):
        x = chunk.to(subject.device).float() / 255 if isinstance(subject.method, IBOT) else twins(subject, chunk)
        ids, grid = tokens_of(subject, x)
        blurred, _ = tokens_of(subject, low_pass(x, cut_of(x.shape[-1])).clamp(0, 1))
        tinted, _ = tokens_of(subject, adjust_hue(x, HUE) if x.shape[1] == 3 else x)
        color = F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)
        rows.append([each.cpu().numpy() for each in (ids, color, gradient_energy(x, grid), blurred, tinted)])
    return Targets(*map(np.concatenate, zip(*rows, strict=True)))


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Measure tokenizers and teachers on labelled DATA."""
    source, numbers, short = ask.source(WHAT), {}, names(subjects)
    series: list[tuple[str, Estimate, Estimate]] = []
    shares, floors = [], []
    for subject, label in zip(subjects, short, strict=True):
        pictures = look(subject, source, ask)
        if (pictures.labels < 0).any():
            raise ValueError(f"{WHAT} compares tokens with classes, and {source.name} has images without a label")
        found = measure(subject, pictures)
        nmi, floor = (f(found.ids, pictures.labels) for f in (mutual_information, chance))
        color, detail = (
            ratio_of(*explained(found.ids, values, ask.seed), ask.seed)
            for values in (found.color, found.detail[..., None])
        )
        turned = [mean_of(flips(found.ids, other), ask.seed) for other in (found.blurred, found.tinted)]
        numbers[subject.name] = {
            "images": len(found.ids), "tokens_used": len(np.unique(found.ids)), "nmi": nmi, "nmi_by_chance": floor,
            "r2_color": color, "r2_gradient_energy": detail, "flips_low_pass": turned[0], "flips_hue": turned[1],
        }  # fmt: skip
        series.append((label, _join(color, detail), _join(*turned)))
        shares.append(nmi)
        floors.append(floor)
    note = (
        "Tokens are argmax, one a patch. NMI with the image's class: the dashes are what the same tokens have with "
        "shuffled classes. R^2: a linear map from the token predicts the patch, on other images. Flips: tokens "
        f"changed by keeping {CUT} cycles an image (a quarter of the side, if less), or by turning the hue by {HUE}. "
        "Targets that encode looks have high R^2 and flip; of meaning, high NMI. 95 % intervals over images."
    )
    titles = ["NMI with the class", "R^2 from the token", "tokens that flip"]
    figure, (left, middle, last) = charts.panels(titles, note=note, width=2.6)
    for i, (value, floor) in enumerate(zip(shares, floors, strict=True)):
        left.bar(i, value, 0.7, color=charts.color(i))
        left.plot([i - 0.42, i + 0.42], [floor, floor], color=charts.INK, linestyle="--", linewidth=0.9)
    left.set_xticks(range(len(short)), short)
    charts.bars(middle, ["mean color", "gradient\nenergy"], [(label, r2) for label, r2, _ in series])
    charts.bars(last, ["low-pass", "hue"], [(label, turned) for label, _, turned in series])
    charts.percent(last)
    charts.legend(last)
    return Finding(numbers, figure)


def _join(*estimates: Estimate) -> Estimate:
    return Estimate(*map(np.array, zip(*estimates, strict=True)))
