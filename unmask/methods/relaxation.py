"""Sampling codes with a gradient, and how far codes are from the prior.

Jang et al. 2017 and Maddison et al. 2017: adding Gumbel noise to logits and taking the argmax samples
the softmax; a softmax in the argmax's place, at a temperature, is its relaxation.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gumbel(like: Float[Tensor, "*s"], generator: torch.Generator | None = None) -> Float[Tensor, "*s"]:
    """Draw standard Gumbel noise, -log(-log u), from torch's generator or the given one."""
    # uniform numbers are four times faster than exponential ones on a CPU; u = 0 gives -inf, a code left out
    return torch.empty_like(like).uniform_(generator=generator).log_().neg_().log_().neg_()


def relax(
    logits: Float[Tensor, "B N K"],
    temperature: float,
    noise: Float[Tensor, "B N K"] | None = None,
    *,
    hard: bool = False,
) -> Float[Tensor, "B N K"]:
    """Sample relaxed codes, softmax((logits + gumbel) / temperature).

    Args:
        logits: fp32.
        temperature: tau > 0; DALL-E 1 -> 1/16.
        noise: Gumbel noise; None draws it.
        hard: one-hot codes that pass the gradient of the soft ones (straight-through).
    Returns:
        [B N K], each row sums to 1.
    """
    soft = ((logits + (gumbel(logits) if noise is None else noise)) / temperature).softmax(-1)
    if not hard:
        return soft
    return torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0) - soft.detach() + soft


def categorical_kl(logits: Float[Tensor, "*s K"]) -> Float[Tensor, "*s"]:
    """KL(softmax(logits) || uniform) = log K - entropy, in nats; in [0, log K].

    Of the raw logits: no temperature, no noise (Ramesh et al. 2021).

    Example:
        >>> round(categorical_kl(torch.tensor([1.0, 2.0, 3.0, 4.0])).item(), 6)
        0.438757
    """
    log_q = F.log_softmax(logits.float(), dim=-1)  # not log(q + 1e-10): exact for peaked cells too
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])


def gaussian_kl(mean: Float[Tensor, "*s"], log_variance: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """KL(N(mean, variance) || N(0, 1)) of each dimension, in nats (Kingma and Welling 2014, B).

    Not used by the discrete VAE, whose prior is uniform; for codecs of your own.

    Example:
        >>> round(gaussian_kl(torch.tensor(1.0), torch.tensor(2.0).log()).item(), 6)
        0.653426
    """
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)
