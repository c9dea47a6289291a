"""A3, relative log-amplitude: how much of the high spatial frequencies a block lets through.

Park and Kim 2022 (How do vision Transformers work?), Figure 2; Park et al. 2023, section 3.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps
from torch import Tensor

from ..evaluate.features import evaluating
from . import charts
from .intervals import mean_of
from .subject import Ask, Finding, Pictures, Subject, look, minibatches, names

WHAT = "amplitude"


def log_amplitude(tokens: Float[Tensor, "B gh gw D"]) -> Float[Tensor, "B F"]:
    """Log-amplitude of the tokens' spatial frequencies along the diagonal, relative to that of frequency 0.

    s(u, v) = mean over channels of log |FFT(tokens)(u, v)|, shifted so that 0 is in the middle; the result is
    s(f) - s(0) for the F = ceil(g / 2) diagonal entries from the middle outward, g the shorter side.

    Args:
        tokens: a block's patch tokens, on their grid.
    Returns:
        for each image; the first entry is 0. White noise is flat beyond it, at ln(2) / 2 = 0.35, not 0: the
        sum of real tokens is real, and the log of a real normal number is smaller in the mean than that of a
        complex one of the same variance. Trained networks differ by several units.
    """
    spectrum = torch.fft.fftshift(torch.fft.fft2(tokens.double(), dim=(1, 2)), dim=(1, 2))
    s = (spectrum.abs() + 1e-6).log().mean(-1)  # [B gh gw]; 1e-6 as the original
    gh, gw = s.shape[1:]
    steps = torch.arange((min(gh, gw) + 1) // 2, device=s.device)
    line = s[:, gh // 2 + steps * gh // min(gh, gw), gw // 2 + steps * gw // min(gh, gw)]
    return (line - line[:, :1]).float()


@torch.no_grad()
def measure(subject: Subject, pictures: Pictures) -> Float[np.ndarray, "S L F"]:
    """Relative log-amplitudes of every block's output (before the final norm), image by image."""
    vit, rows = subject.network(WHAT), []
    with evaluating(vit):
        for images in minibatches(subject, pictures):
            blocks = vit(images, layers=tuple(range(len(vit.blocks))))
            assert not hasattr(blocks, "grid")
            grids = [block.patches.unflatten(1, block.grid) for block in blocks]
            rows.append(torch.stack([log_amplitude(grid) for grid in grids], dim=1).cpu())
    return torch.cat(rows).numpy()


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Measure every block of the models on DATA."""
    source, numbers, short = ask.source(WHAT), {}, names(subjects)
    note = (
        "Fourier amplitude of a block's patch tokens along the diagonal, relative to frequency 0 (log scale). "
        "Colors: blocks, dark first, yellow last. Right: the highest frequency minus 0, with a 95 % interval "
        "over images. Less negative = more fine detail is kept; white noise would be at +0.35."
    )
    figure, (*each, last) = charts.panels([*short, "high minus low"], note=note)
    for i, (subject, label, axes) in enumerate(zip(subjects, short, each, strict=True)):
        values = measure(subject, look(subject, source, ask))
        profile, drop = mean_of(values, ask.seed), mean_of(values[:, :, -1], ask.seed)
        grid = subject.network(WHAT).config.grid
        f = 2 * np.arange(values.shape[2]) / min(grid)  # in units of pi a patch
        layers = values.shape[1]
        for layer in range(layers):
            ink = colormaps[charts.LAYERS](layer / max(layers - 1, 1))
            axes.plot(f, profile.value[layer], color=ink, linewidth=1.3)
        charts.labels(axes, "frequency, units of pi", "log-amplitude - that at 0" if i == 0 else "")
        charts.curve(last, np.arange(1, layers + 1), drop, charts.color(i), label)
        numbers[subject.name] = {"images": len(values), "frequency": f, "blocks": profile, "drop": drop}
    low = min(axes.get_ylim()[0] for axes in each)
    high = max(axes.get_ylim()[1] for axes in each)
    for axes in each:
        axes.set_ylim(low, high)
    charts.labels(last, "block", "")
    charts.whole(last)
    charts.legend(last)
    return Finding(numbers, figure)
