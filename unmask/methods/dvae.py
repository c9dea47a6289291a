"""The discrete VAE: BEiT's visual tokenizer (Ramesh et al. 2021, arXiv:2102.12092, "DALL-E", stage 1).

An encoder says for each cell of an image how likely each of K codes is; a decoder paints the image from
the codes. Sampling a code has no gradient, so training samples from a relaxation, a softmax with Gumbel
noise that hardens while its temperature falls. The loss is a bound on the image's likelihood, with the
pull towards using all codes alike weighted by beta. Trained, the argmax code of a cell is its token.

    x                 mapped image                               x           [B C H W], in [.1, .9]
    q(z|x)            softmax of the encoder's logits            logits      [B N K]
    y ~ gumbel, tau   softmax((logits + g) / tau)                sample      codes [B N K], soft
    p(x|y)            logit-Laplace(mu, b), from the decoder     codec.error [B C H W]
    KL(q || 1/K)      log K - H(q), no tau, no noise             sample      kl [B N]
    loss = (sum_pixels -log p + beta sum_cells KL) / (H W C)     so beta / 192 at stride 8, at any size
    beta: 0 -> 6.6    tau: 1 -> 1/16    lr: 1e-4 -> 1.25e-6      Anneal, Anneal, OptimConfig
    evaluated: an average of the weights, decay .999             average

What this file does differently: the schedules are fractions of the run, so that a shorter run keeps
their order. Of the paper's 3,000,000 updates beta rises over 1/600, the temperature falls over 1/20 and
the learning rate over 2/5; here the learning rate falls over the whole run. The average forgets faster
in a short run; ln b has a floor (its hits are logged as `floored`). `kl_over="sum"` is BEiT's
DiscreteVAE, whose `batchmean` of swapped arguments divides by one: its KL is a sum over batch and cells,
and weighs more in a bigger batch.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import MethodConfig
from ..masks import MaskPolicy
from ..views import View
from .base import Batch, Method, Output, Progress, ema
from .codec import LEAST_LOG_SCALE, Codec, CodecConfig, build_codec
from .codec_health import batch_health, diagnose
from .relaxation import sample

WATCHED = 3
"""log lines in a row that must look bad before a warning"""


@dataclass(frozen=True)
class Anneal:
    """Half a cosine from `start` to `end` over the first part of a run, then `end`."""

    start: float
    end: float
    part: float
    """fraction of the run's steps that the way takes; linear ways diverge (Ramesh et al. 2021, A.2)"""

    def __call__(self, at: Progress) -> float:
        done = min(at.step / max(self.part * at.steps, 1e-12), 1.0)
        return self.start + (self.end - self.start) * 0.5 * (1 - math.cos(math.pi * done))


@dataclass(frozen=True)
class DVAEConfig(MethodConfig):
    """Defaults: the published architecture and constants (Ramesh et al. 2021, A.1 and A.2)."""

    codec: CodecConfig = CodecConfig()
    """encoder and decoder"""
    views: tuple[View, ...] = (View(256, scale=(0.44, 0.79), ratio=(1.0, 1.0), twin=256),)
    """one view; its twin, in [0, 1], is what is read, as BEiT's tokenizer will. The paper's crops are
    squares of 2/3 to 8/9 of the shorter side. Without a twin the view itself must be in [0, 1]:
    data.mean 0, data.std 1"""
    masks: tuple[MaskPolicy, ...] = ()
    """none"""
    beta: Anneal = Anneal(0.0, 6.6, 5_000 / 3_000_000)
    """weight of the KL term"""
    temperature: Anneal = Anneal(1.0, 1 / 16, 150_000 / 3_000_000)
    """of the relaxation; tokens are an argmax, so a run must not stop far above 1/16"""
    straight_through: bool = False
    """decode one-hot samples, with the gradient of the soft ones; DALL-E does not"""
    kl_over: Literal["pixels", "sum"] = "pixels"
    """pixels: the mean per image, over its pixels and channels; sum: over batch and cells, as BEiT's
    public DiscreteVAE"""
    ema: float = 0.999
    """fraction of the averaged weights kept at a step; less in runs under 10,000 steps: see `momentum`"""

    def grids(self) -> tuple[tuple[int, int], ...]:
        return ()

    def build(self) -> "DVAE":
        return DVAE(self)


class DVAE(Method):
    """A codec that learns, and the average of its weights."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        (view,) = config.views
        for side in view.shape if view.twin is None else (view.twin,):
            if side % config.codec.stride:
                better = -(-side // config.codec.stride) * config.codec.stride
                raise ValueError(f"view {side} px does not divide into {config.codec.stride}-px cells; use {better}")
        self.config = config
        self.codec = build_codec(config.codec)
        self.average = copy.deepcopy(self.codec).requires_grad_(False).eval()
        self.cells: int | None = None  # of the newest micro-batch: more codes than these its usage cannot show

    def forward(self, batch: Batch, at: Progress) -> Output:
        image = batch.twins[0] if batch.twins else batch.views[0]  # in [0, 1]
        temperature, beta = self.config.temperature(at), self.config.beta(at)
        out = self.score(self.codec.map(image), temperature, beta)
        now = {"temperature": temperature, "beta": beta}
        return out._replace(metrics=out.metrics | {k: torch.full((), v, device=image.device) for k, v in now.items()})

    def score(
        self,
        x: Float[Tensor, "B C H W"],
        temperature: float,
        beta: float,
        noise: Float[Tensor, "B N K"] | None = None,
    ) -> Output:
        """Encode, sample, decode and score a mapped image.

        Args:
            x: from `codec.map`.
            temperature: of the relaxation, tau > 0.
            beta: weight of the KL term.
            noise: Gumbel noise; None draws it from torch's generator.
        """
        grid = self.codec.grid(x)
        logits = self.codec.scores(self.codec.features(x))  # [B N K]
        self.cells = logits.shape[0] * logits.shape[1]
        seen = sample(logits, temperature, noise, self.config.straight_through)
        painted = self.codec.paint(seen.codes, grid)
        nll, kl = self.codec.error(painted, x).mean(), seen.kl  # [B N]
        penalty = kl.sum() if self.config.kl_over == "sum" else kl.sum() / x.numel()
        with torch.no_grad():
            metrics = batch_health(seen) | {
                "nll": nll.detach(),
                "kl": kl.detach().mean(),
                "elbo": -(nll + kl.sum() / x.numel()),
            }
            if self.config.codec.likelihood == "laplace":
                metrics["floored"] = (painted[:, x.shape[1] :] < LEAST_LOG_SCALE).float().mean()
        return Output(nll + beta * penalty, metrics)

    def momentum(self, at: Progress) -> float:
        """Fraction of the average kept: `ema`, but looking back over a tenth of the run at most."""
        return min(self.config.ema, max(0.0, 1 - 10 / at.steps))

    def after_step(self, at: Progress, sums: dict[str, Tensor]) -> None:
        ema(self.average, self.codec, self.momentum(at))

    def warning(self, lines: Sequence[Mapping[str, float]]) -> str | None:
        """Collapse, once the temperature is half way down: before, few codes and little KL are no sign of it."""
        last, schedule = lines[-WATCHED:], self.config.temperature
        if len(last) < WATCHED or last[0]["temperature"] > (schedule.start + schedule.end) / 2:
            return None
        report = {name: sum(line[name] for line in last) / WATCHED for name in ("usage", "kl")}
        found = diagnose(report | {"temperature": schedule.end}, self.config.codec.vocab, self.cells)
        return found[0] if found else None

    def blocks(self) -> list[torch.nn.Module]:
        return [*self.codec.blocks(), *self.average.blocks()]

    def backbone(self) -> Codec:
        """The averaged weights: what is evaluated, and what makes tokens."""
        return self.average

    def tokenizer(self) -> Codec:
        """The averaged codec, frozen: a Tokenizer. It moves on when training does; copy it to keep it."""
        return self.average
