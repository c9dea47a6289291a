"""The pixel map of the discrete VAE and the likelihood of mapped pixels (Ramesh et al. 2021, A.3)."""

import math

from jaxtyping import Float
from torch import Tensor

EPSILON = 0.1
"""how far the pixel map keeps from 0 and 1, where the logit is infinite"""


def map_pixels(image: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Squeeze [0, 1] into [0.1, 0.9]: (1 - 2 eps) x + eps. No mean or deviation (DALL-E, `utils.py`)."""
    return (1 - 2 * EPSILON) * image + EPSILON


def unmap_pixels(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Undo `map_pixels`, clamped to [0, 1]."""
    return ((x - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)


def logit_laplace(x: Float[Tensor, "*s"], mean: Float[Tensor, "*s"], log_scale: Float[Tensor, "*s"]) -> Tensor:
    """Negative log-density of a variable on (0, 1) whose logit is Laplace(mean, b) distributed, in nats.

    Ramesh et al. 2021, A.3: log(2b) + log x + log(1 - x) + |logit(x) - mean| / b.

    Example:
        >>> import torch
        >>> round(logit_laplace(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(0.0)).item(), 6)
        -0.693147
    """
    return math.log(2) + log_scale + (x * (1 - x)).log() + (x.logit() - mean).abs() * (-log_scale).exp()
