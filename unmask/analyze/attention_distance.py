"""A1, mean attention distance: how far, in pixels, patches look (Dosovitskiy et al. 2020, Figure 7)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from . import attention_maps
from .subject import Ask, Finding, Subject

WHAT = "attention-distance"


def patch_distances(grid: tuple[int, int], patch: tuple[int, int]) -> Float[Tensor, "N N"]:
    """Euclidean distance of the centers of all pairs of patches, in pixels."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten() * patch[0], columns.flatten() * patch[1]], dim=1).float()
    return torch.cdist(places[None], places[None], compute_mode="donot_use_mm_for_euclid_dist")[0]


def attention_distance(
    attention: Float[Tensor, "B H N N"], grid: tuple[int, int], patch: tuple[int, int]
) -> Float[Tensor, "B H"]:
    """Mean distance between a patch and what it attends to.

    d = mean over queries i of sum over keys j of A_ij |p_i - p_j|, p the patches' centers.

    Args:
        attention: between patches; each row (a query) adds up to 1.
        grid: (gh, gw), in patches.
        patch: (height, width), in pixels.
    Returns:
        pixels, for each image and head. Uniform attention on 14 x 14 patches of 16 px gives 116.49, a
        patch that sees itself alone 0.
    """
    far = patch_distances(grid, patch).to(attention)
    return (attention * far).sum(-1).mean(-1)


def run(subjects: Sequence[Subject], ask: Ask) -> Finding:
    """Measure every block and head of the models on DATA."""
    first = subjects[0].network(WHAT).config
    near, n = patch_distances(first.grid, first.patch_hw), first.grid[0] * first.grid[1]
    uniform = float(near.sum() / n**2)

    def of(attention: Float[Tensor, "B H N N"], subject: Subject) -> Float[Tensor, "B H"]:
        config = subject.network(WHAT).config
        return attention_distance(attention, config.grid, config.patch_hw)

    return attention_maps.by_layer(
        subjects,
        ask,
        of,
        what=WHAT,
        unit="mean attention distance, px",
        levels=[(uniform, f"uniform attention: {uniform:.1f} px")],
        note="Attention between patches ([CLS] and registers left out, rows normalized again). Lines: mean over "
        "heads, with a 95 % interval over images; dots: single heads. Low = the block mixes neighbors only.",
    )
