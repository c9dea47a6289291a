"""How a tokenizer is doing: whether it uses its codes, and whether they carry the image.

Three ways to fail: collapse (few codes used, or a posterior that equals the prior, so that tokens say
nothing), indecision (cells that are a mixture, whose argmax decodes to something else), and blur.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from .codec import Codec
from .relaxation import Sampled, gumbel, sample

LEAST_USAGE = 0.01
"""fraction of the codes up to which a codebook has collapsed (fidelity: usage < 1 %); a single code always has"""
LEAST_PERPLEXITY = 2.0
"""codes in use in effect below which one stands nearly everywhere"""
LEAST_KL = 0.01
"""fraction of log K below which cells say nothing about the image"""
HIGHEST_TEMPERATURE = 0.125
"""twice DALL-E's 1/16: above it, soft codes are no practice for argmax tokens"""


def usage(ids: Int[Tensor, "*s"], vocab: int) -> Float[Tensor, ""]:
    """Fraction of the codes that occur at all."""
    return _counts(ids, vocab).gt(0).float().mean()


def perplexity(mean: Float[Tensor, "K"]) -> Float[Tensor, ""]:
    """exp(H) of the mean posterior, or of token frequencies: how many codes are in use in effect."""
    return (-torch.special.xlogy(mean, mean).sum()).exp()


def frequencies(ids: Int[Tensor, "*s"], vocab: int) -> Float[Tensor, "K"]:
    """How often each code occurs, adding up to 1."""
    return _counts(ids, vocab) / ids.numel()


def batch_health(seen: Sampled) -> dict[str, Tensor]:
    """What is cheap enough for every step: codes used by the batch, perplexity, entropy of a cell."""
    vocab = len(seen.mean)
    return {
        "usage": usage(seen.ids, vocab),
        "perplexity": perplexity(seen.mean),
        "cell_entropy": math.log(vocab) - seen.kl.detach().mean(),
    }


def psnr(images: Float[Tensor, "B C H W"], others: Float[Tensor, "B C H W"]) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], averaged over images; at most 100."""
    with np.errstate(divide="ignore"):  # equal images
        values = [
            float(peak_signal_noise_ratio(a, b, data_range=1.0))
            for a, b in zip(images.cpu().numpy(), others.cpu().numpy(), strict=True)
        ]
    return float(np.mean(np.minimum(values, 100.0)))


def ssim(images: Float[Tensor, "B C H W"], others: Float[Tensor, "B C H W"]) -> float:
    """Structural similarity of images in [0, 1], averaged over images; windows of 7 pixels or fewer."""
    side = min(*images.shape[2:], 7)
    window = side if side % 2 else side - 1
    values = [
        structural_similarity(a, b, win_size=window, channel_axis=0, data_range=1.0)
        for a, b in zip(images.cpu().numpy(), others.cpu().numpy(), strict=True)
    ]
    return float(np.mean(values))


@torch.no_grad()
def health(
    codec: Codec,
    images: Float[Tensor, "B C H W"],
    *,
    temperature: float = 1 / 16,
    seed: int = 0,
    chunk: int = 32,
) -> dict[str, float]:
    """Examine a codec on held-out images.

    Args:
        codec: our own averaged weights, DALL-E's, BEiT's.
        images: in [0, 1]; hundreds, as usage grows with their number.
        temperature: of the relaxed bound: where training ended.
        seed: of the Gumbel noise.
        chunk: images at a time.
    Returns:
        `usage` (fraction of codes that are some cell's argmax), `token_perplexity` (of the argmax ids),
        `perplexity` (exp H of the mean posterior), `cell_entropy` and `kl` (nats a cell), `psnr` (dB)
        and `ssim` of argmax reconstructions, `temperature`; `elbo_hard` (argmax ids decoded) and
        `elbo_relaxed` (soft samples), in nats a pixel and channel of the mapped image, at beta 1. With
        the mse and smooth_l1 likelihoods the last two are no bounds, only comparable to themselves.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    grid, vocab = codec.grid(images), codec.vocab
    counts, mean = images.new_zeros(vocab), images.new_zeros(vocab)
    totals: dict[str, float] = {}
    for part in images.split(chunk):
        x = codec.map(part)
        logits = codec.logits(x)
        soft, kl, ids, posterior = sample(logits, temperature, gumbel(logits, generator))
        counts += _counts(ids, vocab)
        mean += posterior * (len(part) / len(images))
        hard, relaxed = codec.paint(ids, grid), codec.paint(soft, grid)
        share = len(part) / len(images)
        bound = kl.sum().item() / x.numel()
        decoded = codec.pixels(hard)
        values = {
            "kl": kl.mean().item(),
            "psnr": psnr(part, decoded),
            "ssim": ssim(part, decoded),
            "elbo_hard": -(codec.error(hard, x).mean().item() + bound),
            "elbo_relaxed": -(codec.error(relaxed, x).mean().item() + bound),
        }
        totals = {name: totals.get(name, 0.0) + share * value for name, value in values.items()}
    return {
        "usage": counts.gt(0).float().mean().item(),
        "token_perplexity": perplexity(counts / counts.sum()).item(),
        "perplexity": perplexity(mean).item(),
        "cell_entropy": math.log(vocab) - totals["kl"],
        "temperature": temperature,
        **totals,
    }


def diagnose(report: dict[str, float], vocab: int, cells: int | None = None) -> list[str]:
    """Say in words what `health` found wrong; empty where nothing is.

    Args:
        report: from `health`; `token_perplexity` may lack.
        vocab: K, the codes there are.
        cells: how many cells `usage` was counted on, which can use as many codes at most; None: plenty.
    """
    found, used = [], report["usage"]
    least = max(1.0, LEAST_USAGE * min(vocab, cells or vocab))
    if round(used * vocab) <= least or report.get("token_perplexity", float(vocab)) < LEAST_PERPLEXITY:
        found.append(
            f"the codebook has collapsed: {used:.2%} of {vocab} codes are used, or one nearly everywhere; "
            f"lower beta (--method.beta.end) or its rate of rise (--method.beta.part), or use fewer codes"
        )
    if report["kl"] < LEAST_KL * math.log(vocab):
        found.append(
            f"tokens say next to nothing about the image: KL {report['kl']:.3f} of {math.log(vocab):.2f} nats a cell; "
            f"lower beta (--method.beta.end) and train longer"
        )
    if report["temperature"] > HIGHEST_TEMPERATURE:
        found.append(
            f"the temperature is still {report['temperature']:.3f}: tokens are an argmax, and want it near 1/16; "
            f"train on, or let it fall sooner (--method.temperature.part)"
        )
    return found


def _counts(ids: Int[Tensor, "*s"], vocab: int) -> Float[Tensor, "K"]:
    flat = ids.flatten()  # scatter, because bincount asks a GPU to wait
    ones = torch.ones_like(flat, dtype=torch.float32)
    return torch.zeros(vocab, device=ids.device).scatter_add_(0, flat, ones)
