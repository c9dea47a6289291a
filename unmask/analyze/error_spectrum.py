"""A5, reconstruction-error spectrum: which frequencies are painted well, and which the loss pays for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..methods.dvae import DVAE
from ..methods.mae import MAE, denormalize, patch_statistics, patchify, unpatchify
from . import charts
from .intervals import mean_of, ratio_of
from .spectra import energy
from .subject import Ask, Finding, Pictures, Subject, draw_masks, look, names, normalized, twins

WHAT = "error-spectrum"


class Energies(NamedTuple):
    """|FFT|^2 by radius in cycles an image, for each image: of what is painted wrongly and of the truth."""

    error: Float[np.ndarray, "S K"]
    truth: Float[np.ndarray, "S K"]


def spectra(
    predicted: Float[Tensor, "B N P"],
    true: Float[Tensor, "B N P"],
    mask: Bool[Tensor, "B N"],
    patch: tuple[int, int],
    grid: tuple[int, int],
) -> Energies:
    """Energy of the residual and of the truth at each frequency, on the hidden patches alone.

    E(rho) = sum over the bin of |FFT(e)|^2 / sum over the bin of |FFT(x mask)|^2 with e = (x^ - x) mask pasted
    into an empty image: the same support in both, so that its edges are in both. Predicting 0 gives E = 1.

    Args:
        predicted: patches, as `patchify` orders them.
        true: likewise; their 0 should be the data's mean, or the mean alone would fill frequency 0.
        mask: True = hidden, and scored.
        patch: (height, width), in pixels.
        grid: (gh, gw), in patches.
    Returns:
        by whole-number radius; see `spectra.energy`.
    """
    hidden = mask.unsqueeze(-1)
    error = energy(unpatchify((predicted - true) * hidden, patch, grid))
    return Energies(error.cpu().numpy(), energy(unpatchify(true * hidden, patch, grid)).cpu().numpy())


def loss_share(error: Float[np.ndarray, "S K"]) -> Float[np.ndarray, "S K"]:
    """Part of an image's squared error that lies above each radius: sum rho > rho_0 of |FFT(e)|^2 / sum.

    By Parseval the whole sum is the loss (times a constant); the last entry is 0.
    """
    total = error.sum(1, keepdims=True)
    return 1 - np.cumsum(error, axis=1) / np.where(total > 0, total, 1)


@torch.no_grad()
def measure(subject: Subject, pictures: Pictures, seed: int) -> dict[str, Energies]:
    """Let a model paint images; compare in pixels and in pixels normalized patch by patch.

    An MAE of normalized pixels paints in these; in pixels its patches get their true mean and deviation. A
    discrete VAE hides nothing: the whole image is scored.
    """
    method = subject.of(WHAT, MAE, DVAE)
    found: dict[str, list[Energies]] = {"pixels": [], "normalized": []}
    masks = None if isinstance(method, DVAE) else draw_masks(subject, len(pictures.images), seed).split(32)
    for i, images in enumerate(pictures.images.split(32)):
        if isinstance(method, MAE):
            assert masks is not None
            x, mask, patch = normalized(subject, images), masks[i], method.patch
            y = method.reconstruct(x, mask).float()
            y = denormalize(y, x, patch) if method.norm_pixels else y
            true = patchify(x, patch)
        else:
            assert isinstance(method, DVAE)
            x, patch = twins(subject, images), (method.codec.stride, method.codec.stride)
            codec = method.tokenizer()
            painted = codec.decode(codec.encode(x), codec.grid(x))
            data = subject.config.data
            mean, std = (torch.tensor(v).view(-1, 1, 1).to(x) for v in (data.mean, data.std))
            x, painted = (x - mean) / std, (painted - mean) / std
            true, y = patchify(x, patch), patchify(painted, patch)
            mask = torch.ones(true.shape[:2], dtype=torch.bool, device=x.device)
        grid = x.shape[2] // patch[0], x.shape[3] // patch[1]
        found["pixels"].append(spectra(y, true, mask, patch, grid))
        average, deviation = patch_statistics(true)
        whitened = ((y - average) / deviation, (true - average) / deviation)
        found["normalized"].append(spectra(*whitened, mask, patch, grid))
    return {name: Energies(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in found.items()}


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Measure MAEs and discrete VAEs on DATA."""
    source, numbers = ask.source(WHAT), {}
    note = (
        "On hidden patches (all, for a dvae). Left: energy of the error over that of the image at the same frequency, "
        "pixels, drawn up to 2; 1 = no better than gray. An MAE of normalized pixels borrows each patch's true mean "
        "and contrast here. Middle and right: how much of the squared error lies above a frequency, in pixels and in "
        "pixels normalized patch by patch, which is what such an MAE is trained on. Gray dashes: the image's own "
        "energy, of the first model. 95 % intervals over images."
    )
    titles = ["error / image", "share of the error above, pixels", "the same, normalized pixels"]
    figure, (ratio, raw, norm) = charts.panels(titles, note=note, width=2.9)
    for i, (subject, label) in enumerate(zip(subjects, names(subjects), strict=True)):
        found = measure(subject, look(subject, source, ask), ask.seed)
        ink, most, numbers[subject.name] = charts.color(i), min(subject.size) // 2, {}
        rho = np.arange(most + 1)
        for name, energies in found.items():
            spectrum = ratio_of(*energies, ask.seed)
            share = mean_of(loss_share(energies.error), ask.seed)
            above = {f"above {cut} cycles": share.value[cut] for cut in (most // 4, most // 2)}
            numbers[subject.name][name] = {"error_over_image": spectrum, "loss_share": share, "share": above}
            part = [type(spectrum)(*(each[: most + 1] for each in estimate)) for estimate in (spectrum, share)]
            if name == "pixels":
                charts.curve(ratio, rho, part[0], ink, label, marker="")
            charts.curve(raw if name == "pixels" else norm, rho, part[1], ink, label, marker="")
            if i == 0:
                own = loss_share(energies.truth).mean(0)[: most + 1]
                (raw if name == "pixels" else norm).plot(rho, own, color=charts.FAINT, linestyle="--", linewidth=0.9)
        numbers[subject.name]["images"] = len(found["pixels"].error)
    charts.level(ratio, 1.0, "predicting the mean")
    ratio.set_ylim(0, 2)
    for axes in (ratio, raw, norm):
        charts.labels(axes, "cycles an image", "")
    for axes in (raw, norm):
        axes.set_ylim(0, 1)
        charts.percent(axes)
    charts.legend(ratio, loc="upper left")
    return Finding(numbers, figure)
