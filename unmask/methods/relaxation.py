"""Sampling codes with a gradient, and how far codes are from the prior.

Jang et al. 2017 and Maddison et al. 2017: adding Gumbel noise to logits and taking the argmax samples
the softmax; a softmax in the argmax's place, at a temperature, is its relaxation.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .. import passes
from ..side_by_side import side_by_side
from .logits import parts


def gumbel(like: Float[Tensor, "*s"], generator: torch.Generator | None = None) -> Float[Tensor, "*s"]:
    """Draw standard Gumbel noise, -log(-log u), from torch's generator or the given one.

    Large draws on a CPU come from NumPy's SFC64, which that generator seeds.
    """
    return uniform(like, generator).log_().neg_().log_().neg_()


def uniform(like: Float[Tensor, "*s"], generator: torch.Generator | None = None) -> Float[Tensor, "*s"]:
    """What `gumbel` is made of; four times faster to draw than exponential numbers on a CPU. 0 leaves a code out."""
    u = torch.empty_like(like, memory_format=torch.contiguous_format)
    if u.device.type != "cpu" or u.dtype != torch.float32 or u.numel() < _LEAST_SPLIT:
        u.uniform_(generator=generator)
    else:  # a generator is serial: one for each part, the same parts whatever threads there are
        seeds = torch.randint(2**62, (_STREAMS,), generator=generator).tolist()
        side_by_side(_fill, u.view(-1).chunk(_STREAMS), seeds)
    return u


def _fill(part: Tensor, seed: int) -> None:
    np.random.Generator(np.random.SFC64(seed)).random(dtype=np.float32, out=part.numpy())  # 2/3 of torch's time


_STREAMS = 8
"""parts of a large draw that are filled side by side"""
_LEAST_SPLIT = 1 << 18
"""numbers from which that pays"""


class Sampled(NamedTuple):
    """What one pass over the logits gives; codes and kl have a gradient."""

    codes: Float[Tensor, "*s K"]
    """softmax((logits + gumbel) / temperature), in the precision of the logits"""
    kl: Float[Tensor, "*s"]
    """`categorical_kl` of the logits, in nats"""
    ids: Int[Tensor, "*s"]
    """the logits' argmax"""
    mean: Float[Tensor, "K"]
    """the mean of softmax(logits)"""


def sample(
    logits: Float[Tensor, "*s K"], temperature: float, noise: Float[Tensor, "*s K"] | None = None, hard: bool = False
) -> Sampled:
    """Sample relaxed codes, and measure how far the posterior is from the prior.

    All that a step needs of the logits, for which 8192 numbers a cell are read once forward and once backward. What
    is in between is made for a few cells at a time and not kept: in fp32 it would be ten times the logits.

    Args:
        logits: of any precision; inside all is fp32.
        temperature: tau > 0; DALL-E 1 -> 1/16.
        noise: Gumbel noise; None draws it.
        hard: one-hot codes that pass the gradient of the soft ones (straight-through).
    """
    return Sampled(*_Sample.apply(logits, temperature, noise, hard))


def relax(
    logits: Float[Tensor, "*s K"],
    temperature: float,
    noise: Float[Tensor, "*s K"] | None = None,
    *,
    hard: bool = False,
) -> Float[Tensor, "*s K"]:
    """Only the codes of `sample`; each row sums to 1."""
    return sample(logits, temperature, noise, hard).codes


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, noise: Tensor | None, hard: bool) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, shape, k = logits.flatten(0, -2), logits.shape[:-1], logits.shape[-1]
        noises = None if noise is None else noise.reshape(rows.shape)
        exact = torch.promote_types(logits.dtype, torch.float32)
        soft, total = torch.empty_like(rows), rows.new_zeros(k, dtype=exact)
        lse, kl = rows.new_empty(2, len(rows), 1, dtype=exact)
        ids = rows.new_empty(len(rows), 1, dtype=torch.int64)
        for part in parts(rows):
            if passes.at_once(rows):
                u = uniform(torch.empty_like(rows[part], dtype=exact)) if noises is None else noises[part]
                found = passes.Found(soft[part], lse[part], kl[part], ids[part])
                total += passes.sample(rows[part], u, noises is None, temperature, found)
                continue
            x = rows[part].to(exact, copy=True)
            peak, ids[part] = x.max(-1, keepdim=True)
            q = x.softmax(-1)
            total += q.sum(0)
            # log sum exp(x - peak), from the largest q: what log_softmax would give, without its pass of logarithms
            rest = q.gather(-1, ids[part]).log_().neg_()
            lse[part] = peak + rest
            x -= peak
            kl[part] = q.mul_(x).sum(-1, keepdim=True) - rest + math.log(k)  # sum q log q + log K
            x += gumbel(x) if noises is None else noises[part]
            soft[part] = normal(x.div_(temperature).softmax(-1))
        ctx.save_for_backward(rows, soft, kl, lse)
        ctx.temperature = temperature
        mean = total / len(rows)
        ctx.mark_non_differentiable(ids, mean)
        codes = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0) if hard else soft
        return codes.view(logits.shape), kl.view(shape), ids.view(shape), mean

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_codes: Tensor, of_kl: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, soft, kl, lse = ctx.saved_tensors
        codes, weight = of_codes.reshape(rows.shape), of_kl.reshape(-1, 1)
        shift = math.log(rows.shape[-1]) - kl - lse  # -sum q log q, and what makes log q of logits
        found = torch.empty_like(rows)
        if passes.at_once(rows):
            passes.sample_backward(codes, weight, rows, soft, lse, kl, ctx.temperature, found)
            return found.view(of_codes.shape), None, None, None
        for part in parts(rows):
            y = soft[part].to(kl.dtype)
            y /= y.sum(-1, keepdim=True)  # of rounded codes it is not quite 1, which a gradient would notice
            of_y = torch.ops.aten._softmax_backward_data(codes[part].to(kl.dtype), y, -1, kl.dtype)
            x = rows[part].to(kl.dtype, copy=True)
            of_x = x.softmax(-1).mul_(x.add_(shift[part])).mul_(weight[part])  # q (log q - sum q log q)
            found[part] = normal(of_x.add_(of_y, alpha=1 / ctx.temperature))
        return found.view(of_codes.shape), None, None, None


def normal(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """x, with 0 for what is below the normal numbers of its type (1e-38 in fp32): most codes of a low temperature.

    Products of those take some processors ten times longer.
    """
    return F.hardshrink(x, torch.finfo(x.dtype).tiny) if x.device.type == "cpu" else x


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
