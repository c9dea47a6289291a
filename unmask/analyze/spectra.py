"""Spatial frequencies of images: filters, band-limited noise, energy by radius (A4, A5, A7).

A frequency is rho = sqrt(u^2 + v^2), in cycles an image: 1 is one wave over the whole image, and half
the image's side in pixels is the finest wave along a row or column.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def radius(size: tuple[int, int], device: torch.device | str = "cpu") -> Float[Tensor, "h w"]:
    """Frequency of every coefficient of `fft2`, in cycles an image."""
    v, u = (torch.fft.fftfreq(side, 1 / side, device=device) for side in size)
    return torch.hypot(v[:, None].expand(size), u[None].expand(size))


def low_pass(images: Float[Tensor, "B C h w"], cut: float) -> Float[Tensor, "B C h w"]:
    """Keep the frequencies rho <= cut."""
    return _keep(images, radius((images.shape[2], images.shape[3]), images.device) <= cut)


def high_pass(images: Float[Tensor, "B C h w"], cut: float) -> Float[Tensor, "B C h w"]:
    """Keep the frequencies rho >= cut; the mean of an image goes with any cut above 0."""
    return _keep(images, radius((images.shape[2], images.shape[3]), images.device) >= cut)


def band_noise(
    shape: tuple[int, int, int, int], band: tuple[float, float], strength: float, rng: np.random.Generator
) -> Float[Tensor, "B C h w"]:
    """White noise, of which a band of frequencies is left, brought to one l2 norm an image.

    Args:
        shape: (B, C, h, w).
        band: lowest and highest angular frequency, in units of pi a pixel: 1 is the finest wave of a row.
        strength: root mean square of the result, in the images' unit.
        rng: draws it.
    """
    noise = torch.from_numpy(rng.standard_normal(shape, np.float32))
    v, u = (torch.fft.fftfreq(side) * 2 for side in shape[2:])
    angular = torch.hypot(v[:, None].expand(shape[2:]), u[None].expand(shape[2:]))
    kept = _keep(noise, (angular >= band[0]) & (angular <= band[1]))
    power = kept.square().mean((1, 2, 3), keepdim=True)
    return kept * strength / power.sqrt().clamp(min=1e-12)


def energy(images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
    """|FFT|^2, added up over channels and over the coefficients of each whole-number radius 0, 1, 2, ...

    All coefficients are in one bin, the corners too; the sum of all bins is h w times that of the squared
    pixels (Parseval).
    """
    bins = bins_of((images.shape[2], images.shape[3]), images.device)
    power = torch.fft.fft2(images.double()).abs().square().sum(1).flatten(1)  # [B h*w]
    return power.new_zeros(len(power), int(bins.max()) + 1).index_add_(1, bins, power)


def bins_of(size: tuple[int, int], device: torch.device | str = "cpu") -> Int[Tensor, "c"]:
    """The whole-number radius that each coefficient of `fft2`, row by row, counts to."""
    return radius(size, device).round().long().flatten()


def _keep(images: Float[Tensor, "B C h w"], where: Tensor) -> Float[Tensor, "B C h w"]:
    return torch.fft.ifft2(torch.fft.fft2(images) * where).real
