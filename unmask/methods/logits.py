"""Cross-entropy over a wide vocabulary, and how to go through logits that are wide."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

AT_A_TIME = 1 << 20
"""numbers that a CPU works on at a time, to bound memory; half or twice as many take as long"""


class Scored(NamedTuple):
    """Guesses and what they are worth."""

    nats: Float[Tensor, ""]
    """sum of the cross-entropies over rows; has a gradient"""
    best: Int[Tensor, "M"]
    """the logits' argmax"""


def cross_entropy(logits: Float[Tensor, "M K"], target: Int[Tensor, "M"]) -> Scored:
    """Score logits, in fp32 whatever their precision, without keeping them in fp32.

    The gradient, softmax(logits) - one_hot(target), is made from the logits again: torch's own way writes and
    reads four tensors of M x K in fp32 instead.

    Args:
        logits: of M tokens over K ids; M may be 0.
        target: the true ids.
    """
    return Scored(*_CrossEntropy.apply(logits, target))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        exact = torch.promote_types(logits.dtype, torch.float32)
        nats, best = logits.new_zeros((), dtype=exact), torch.empty_like(target)
        for part in parts(logits):
            x = logits[part].to(exact)
            peak, best[part] = x.max(-1)
            rest = x.softmax(-1).gather(-1, best[part, None]).log()  # - log sum exp(x - peak); q is largest there
            nats += (peak - rest[:, 0] - x.gather(-1, target[part, None])[:, 0]).sum()
        ctx.save_for_backward(logits, target)
        ctx.exact = exact
        ctx.mark_non_differentiable(best)
        return nats, best

    @staticmethod
    def backward(ctx: Any, of_nats: Tensor, _: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, target = ctx.saved_tensors
        found = torch.empty_like(logits)
        for part in parts(logits):  # with a derivative of its own: `show flatness` takes the second one
            y = logits[part].to(ctx.exact).softmax(-1) * of_nats
            found[part] = y.scatter_add_(-1, target[part, None], -of_nats.expand(len(y), 1))
        return found, None


def parts(rows: Float[Tensor, "M K"]) -> list[slice]:
    """What is worked on at a time: a few rows on a CPU, all elsewhere."""
    few = max(1, AT_A_TIME // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))
    return [slice(i, i + few) for i in range(0, len(rows), few)]
