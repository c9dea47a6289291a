"""The attentive probe: learned queries read all frozen patches, a linear head answers.

Masked image models spread what they know over the patches, which neither the class token nor a mean
does justice. One layer of cross-attention finds it, and is still a probe: the backbone never moves.

Source: attention pooling of AIM (El-Nouby et al. 2024, arXiv:2401.08541, section 4), after the attentive
probing of CAE (Chen et al. 2022, arXiv:2202.03026): batch normalization without an affine part, keys and
values by linear maps, one learned query a head, a linear classifier. Differs: no bias in keys and values,
several rates trained side by side and chosen on a held-out part of the training images.

    x^ = BN(x)                                    tokens              [B N D]
    a_h = softmax(q_h . W_k,h x^ / sqrt(d))       weights of head h   [B N]
    y = head(concat_h W_v,h sum_n a_h,n x^_n)     logits              [B C]

Both maps are linear, so that W_k meets the query and W_v the pooled token: exactly the same numbers at a
D-th of the cost.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..schedules import WarmupCosine
from .heads import Plan, Rows, fit, fitting_batch, logits, numbered, seeded
from .metrics import top1
from .probe import held_out_parts

RATES = (3e-4, 1e-3, 3e-3)
"""learning rates of AdamW that are tried side by side"""


class AttentivePool(nn.Module):
    """One probe: cross-attention of learned queries over patches, then a linear head."""

    def __init__(self, width: int, heads: int, classes: int):
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(heads, width // heads))
        self.key = nn.Parameter(width**-0.5 * torch.randn(heads, width // heads, width))
        self.value = nn.Parameter(width**-0.5 * torch.randn(heads, width // heads, width))
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B C"]:
        asks = torch.einsum("hd,hdw->hw", self.query, self.key) * self.query.shape[1] ** -0.5
        weight = torch.einsum("bnw,hw->bhn", x, asks).softmax(-1)
        pooled = torch.einsum("bhn,bnw->bhw", weight, x)
        return self.head(torch.einsum("bhw,hdw->bhd", pooled, self.value).flatten(1))


class AttentivePools(nn.Module):
    """Probes side by side over one normalization: logits [B R C]."""

    def __init__(self, width: int, heads: int, classes: int, count: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.probes = nn.ModuleList(AttentivePool(width, heads, classes) for _ in range(count))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B R C"]:
        x = self.norm(x.flatten(0, 1)).view(x.shape)
        return torch.stack([probe(x) for probe in self.probes], dim=1)


@dataclass(frozen=True)
class AttentiveProbe:
    """The protocol; memory holds one batch of patches, whatever the size of the set."""

    heads: int
    """queries; the backbone's number of heads"""
    rates: tuple[float, ...] = RATES
    epochs: int = 20
    batch: int = 256
    """images a step; fewer where the set is small"""
    weight_decay: float = 0.05
    seed: int = 0

    def fit(self, patches: Rows, labels: Int[np.ndarray, "S"], device: torch.device | str = "cpu") -> "FittedAttentive":
        """Choose the rate on a held-out part, then train on all images.

        Args:
            patches: of the training images, rows [N D].
            labels: class of each, at least two different.
            device: where to compute.
        """
        classes, truth = numbered(labels)
        rates, parts = self.rates, held_out_parts(labels, self.seed)[:1]
        for held in parts:
            keep, rest = np.flatnonzero(~held), np.flatnonzero(held)
            trial = self._train(patches.of(keep), truth[keep], len(classes), rates, device)
            said = logits(trial, patches.of(rest), device).argmax(-1).numpy()  # [Q R]
            rates = (rates[int(np.argmax([top1(said[:, r], truth[rest]) for r in range(len(rates))]))],)
        rates = rates if parts else rates[len(rates) // 2 :][:1]
        return FittedAttentive(self._train(patches, truth, len(classes), rates, device), classes, rates[0])

    def _train(
        self,
        patches: Rows,
        truth: Int[np.ndarray, "S"],
        classes: int,
        rates: tuple[float, ...],
        device: torch.device | str,
    ) -> nn.Module:
        width = patches.arrays[0].shape[-1]
        with seeded(self.seed, "attentive"):
            pools = AttentivePools(width, self.heads, classes, len(rates)).to(device)
        groups = [{"params": p.parameters(), "lr_scale": r} for p, r in zip(pools.probes, rates, strict=True)]
        optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=self.weight_decay)
        batch = fitting_batch(self.batch, len(truth))
        plan = Plan(self.epochs, batch, WarmupCosine(1.0, 0.0, warmup_fraction=0.1), self.seed)

        def loss(x: Float[Tensor, "B N D"], y: Int[Tensor, "B"]) -> Float[Tensor, ""]:
            return sum((cross_entropy(each, y) for each in pools(x).unbind(1)), torch.zeros((), device=device))

        return fit(pools, loss, optimizer, [patches], truth, plan, device)


@dataclass(frozen=True)
class FittedAttentive:
    """A trained probe."""

    pools: nn.Module
    classes: Int[np.ndarray, "C"]
    """the label that each logit stands for"""
    rate: float
    """the learning rate that was chosen"""

    def predict(self, patches: Rows, device: torch.device | str = "cpu") -> Int[np.ndarray, "Q"]:
        """Return the likeliest class of each image."""
        return self.classes[logits(self.pools, patches, device)[:, 0].argmax(-1).numpy()]
