"""Linear probes as MAE, BEiT and iBOT publish them, on features that were taken once.

They differ in everything: which tokens, which layers, the optimizer, what is swept. Their numbers belong
to their papers' tables; for a comparison of methods use the common form (`probe.py`).

The originals draw a new random crop of each image in every epoch. Here epoch e reads rendering e modulo
the number of renderings: with as many as epochs (`--augment 90`) it is their training, with fewer, or with
the center crop alone, one that augments less. Differs besides: the batch is at most a twentieth of the
images; what the originals choose on test images (BEiT's block, iBOT's rate) is chosen on a held-out part
of the training images; MAE's rate stays 6.4 when the batch is smaller.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..optim import LARS
from ..schedules import WarmupCosine
from ..vit import ViT
from .heads import EpochCosine, Plan, Rows, fit, fitting_batch, logits, numbered, seeded
from .probe import held_out_parts

Form = Literal["mae", "beit", "ibot"]
IBOT_RATES = tuple(digit * 10.0**power for power in range(-4, 1) for digit in range(1, 10))
"""45 rates for batches of 256, all trained at once"""


class Probed(NamedTuple):
    """What a published probe says of the test images."""

    features: str
    layer: str | int
    predicted: Int[np.ndarray, "Q"]
    settings: dict[str, Any]
    """batch, epochs and what was chosen"""


class Inputs(NamedTuple):
    """Features by name: `cls`, `mean`, `3/cls`, ..."""

    train: Sequence[Callable[[Sequence[str]], Rows]]
    """renderings of the training images: names -> rows"""
    test: Callable[[Sequence[str]], Rows]


def needs(form: Form, backbone: ViT) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The poolings and the blocks that a form reads."""
    depth = len(backbone.blocks)
    if form == "mae":
        return ("cls",), ()
    if form == "beit":
        return ("cls", "mean"), tuple(range(1, depth + 1))
    return (("cls",), tuple(range(max(1, depth - 3), depth + 1))) if is_small(backbone) else (("cls", "mean"), ())


def is_small(backbone: ViT) -> bool:
    """Whether iBOT's form for ViT-S holds: the class tokens of the last four blocks; ViT-B on: cls and mean."""
    return backbone.config.width < 768


def probe(
    form: Form,
    backbone: ViT,
    inputs: Inputs,
    labels: Int[np.ndarray, "S"],
    *,
    every_layer: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Probed]:
    """Train a published probe and answer for the test images.

    Args:
        form: whose.
        backbone: frozen; gives sizes and, for iBOT, the final norm.
        inputs: features that `needs` names.
        labels: class of each training image.
        every_layer: BEiT: report all blocks instead of the best.
        seed: of the head's weights, the order and the held-out part.
        device: where to compute.
    """
    classes, truth = numbered(labels)
    parts = held_out_parts(labels, seed)[:1]
    how = {"mae": _mae, "beit": _beit, "ibot": _ibot}[form]
    return how(backbone, inputs, classes, truth, parts, every_layer, seed, device)


def _mae(backbone, inputs, classes, truth, parts, every_layer, seed, device) -> list[Probed]:
    """He et al. 2021, A.1 and `main_linprobe.py`: BatchNorm without affine part, LARS, plain cross-entropy."""
    width, epochs = backbone.config.width, 50 if backbone.config.width >= 1024 else 90
    # 0.1 * batch / 256 at the published batch, and kept for smaller ones: LARS moves weights by a part of
    # their length, 0.001 * lr a step, and by the linear rule 20 steps an epoch would never leave the start
    batch, lr = fitting_batch(16384, len(truth)), 0.1 * 16384 / 256
    with seeded(seed, "probe", "mae"):
        linear = nn.Linear(width, len(classes))
        nn.init.trunc_normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
    head = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear).to(device)
    plan = Plan(epochs, batch, WarmupCosine(lr, 10.0), seed)
    views = [view(("cls",)) for view in inputs.train]
    fit(head, lambda x, y: cross_entropy(head(x), y), LARS(head.parameters()), views, truth, plan, device)
    said = classes[logits(head, inputs.test(("cls",)), device).argmax(-1).numpy()]
    return [Probed("cls", "last", said, {"batch": batch, "epochs": epochs, "lr": lr})]


class Bank(nn.Module):
    """Linear classifiers side by side, each of its own input [B H F] or all of one [B F]: logits [B H C]."""

    def __init__(self, count: int, features: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(count, classes, features))
        self.bias = nn.Parameter(torch.zeros(count, classes))

    def forward(self, x: Float[Tensor, "B *H F"]) -> Float[Tensor, "B H C"]:
        return torch.einsum("bhf,hcf->bhc" if x.ndim == 3 else "bf,hcf->bhc", x, self.weight) + self.bias

    def losses(self, x: Float[Tensor, "B *H F"], y: Int[Tensor, "B"]) -> Float[Tensor, "H"]:
        said = self(x).flatten(0, 1)
        return cross_entropy(said, y.repeat_interleave(len(self.bias)), reduction="none").view(len(y), -1).mean(0)


def _beit(backbone, inputs, classes, truth, parts, every_layer, seed, device) -> list[Probed]:
    """Bao et al. 2021 and BEiT's `run_linear_eval.py`: a probe per block on cat[cls, mean patch], no norm."""
    depth, batch = len(backbone.blocks), fitting_batch(1024, len(truth))
    plan = Plan(100, batch, EpochCosine(4e-3), seed)

    def train(blocks: Sequence[int], rows: np.ndarray) -> Bank:
        with seeded(seed, "probe", "beit"):
            bank = Bank(len(blocks), 2 * backbone.config.width, len(classes)).to(device)
        views = [_by_block(view, blocks).of(rows) for view in inputs.train]
        optimizer = torch.optim.AdamW(bank.parameters(), lr=0.0, weight_decay=1e-4)
        fit(bank, lambda x, y: bank.losses(x, y).sum(), optimizer, views, truth[rows], plan, device)
        return bank

    blocks, everything = range(1, depth + 1), np.arange(len(truth))
    if not every_layer:
        scores = np.zeros(depth)
        for held in parts:
            trial, rest = train(blocks, np.flatnonzero(~held)), np.flatnonzero(held)
            said = logits(trial, _by_block(inputs.train[0], blocks).of(rest), device).argmax(-1).numpy()
            scores = (said == truth[rest][:, None]).mean(0)
        blocks = (int(scores.argmax()) + 1 if parts else depth,)
    said = logits(train(blocks, everything), _by_block(inputs.test, blocks), device).argmax(-1).numpy()
    settings = {"batch": batch, "epochs": plan.epochs, "lr": 4e-3}
    return [Probed("cls+mean", block, classes[said[:, i]], settings) for i, block in enumerate(blocks)]


def _by_block(view: Callable[[Sequence[str]], Rows], blocks: Sequence[int]) -> Rows:
    names = [f"{block}/{pool}" for block in blocks for pool in ("cls", "mean")]
    return view(names)._replace(then=lambda x: x.unflatten(1, (len(blocks), 2)).flatten(2))  # [B L 2D]


def _ibot(backbone, inputs, classes, truth, parts, every_layer, seed, device) -> list[Probed]:
    """Zhou et al. 2021 and iBOT's `eval_linear_multi.py`: normed tokens, SGD, 45 rates at once."""
    pools, blocks = needs("ibot", backbone)
    names = [f"{block}/cls" for block in blocks] or list(pools)

    @torch.no_grad()
    def prepare(x: Float[Tensor, "B *A D"]) -> Float[Tensor, "B F"]:
        return (backbone.norm(x) if blocks else x).flatten(1)

    batch, features = fitting_batch(1024, len(truth)), len(names) * backbone.config.width

    def train(rates: Sequence[float], rows: np.ndarray) -> Bank:
        with seeded(seed, "probe", "ibot"):
            bank = Bank(len(rates), features, len(classes)).to(device)
        factor = torch.tensor(rates, device=device) * batch / 256
        views = [view(names)._replace(then=prepare).of(rows) for view in inputs.train]
        # momentum SGD is linear in the gradient: a factor on a head's loss is a factor on its rate
        optimizer = torch.optim.SGD(bank.parameters(), lr=0.0, momentum=0.9)
        plan = Plan(100, batch, EpochCosine(1.0), seed)
        fit(bank, lambda x, y: (factor * bank.losses(x, y)).sum(), optimizer, views, truth[rows], plan, device)
        return bank

    rate = IBOT_RATES[len(IBOT_RATES) // 2]
    for held in parts:
        trial, rest = train(IBOT_RATES, np.flatnonzero(~held)), np.flatnonzero(held)
        said = logits(trial, inputs.train[0](names)._replace(then=prepare).of(rest), device)
        score = (said.argmax(-1).numpy() == truth[rest][:, None]).mean(0)
        score[~said.isfinite().all(-1).all(0).numpy()] = -1  # the largest rates may diverge
        rate = IBOT_RATES[int(score.argmax())]
    bank = train((rate,), np.arange(len(truth)))
    said = logits(bank, inputs.test(names)._replace(then=prepare), device)[:, 0].argmax(-1).numpy()
    layer = f"last-{len(blocks)}" if blocks else "last"
    settings = {"batch": batch, "epochs": 100, "rate": rate}
    return [Probed("cls" if blocks else "cls+mean", layer, classes[said], settings)]
