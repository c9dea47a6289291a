"""A2, attention NMI: whether what a patch looks at depends on the patch (Park et al. 2023, section 2)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from . import attention_maps
from .subject import Ask, Finding, Subject

WHAT = "attention-nmi"


def attention_nmi(attention: Float[Tensor, "B H N N"]) -> Float[Tensor, "B H"]:
    """Normalized mutual information of queries and keys.

    p(q) = 1 / N, p(q, k) = A_qk / N, p(k) = sum over q of p(q, k);
    I = sum p(q, k) log(p(q, k) / (p(q) p(k))); NMI = I / sqrt(H(q) H(k)).

    Args:
        attention: between patches; each row (a query) adds up to 1.
    Returns:
        for each image and head: 0 where all queries attend alike, 1 where each has a key of its own. Where
        all look at one and the same key, H(k) is 0, and so is the NMI.
    """
    n = attention.shape[-1]
    joint = attention.double() / n
    keys = torch.special.entr(joint.sum(-2)).sum(-1)  # H(k)
    # I = H(q) + H(k) - H(q, k), with H(q) = log N
    information = (math.log(n) + keys - torch.special.entr(joint).sum((-2, -1))).clamp(min=0)
    scale = (math.log(n) * keys).clamp(min=1e-12).sqrt()
    return torch.where(keys > 1e-9, information / scale, 0.0).float()


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Measure every block and head of the models on DATA."""
    return attention_maps.by_layer(
        subjects,
        ask,
        lambda attention, subject: attention_nmi(attention),
        what=WHAT,
        unit="NMI of queries and keys",
        levels=[],
        note="Attention between patches, as for attention-distance. 0 = every patch attends to the same places "
        "(homogeneous attention); 1 = every patch to its own. Lines: mean over heads, with a 95 % interval over "
        "images; dots: single heads.",
    )
