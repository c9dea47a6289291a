"""Where [CLS] looks: the last block's attention, head by head, and the patches that hold most of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from torch import Tensor

from ..evaluate.features import evaluating
from ..positions import grid_of
from ..vit import ViT
from .grid import grid, save
from .picture import enlarge, shade, to_pictures

MASS = 0.6
"""part of a head's attention that is drawn as an overlay; DINO's figures"""
COLORS = "inferno"
"""matplotlib's name for the heat map's colors: as bright as the attention is high"""


class Maps(NamedTuple):
    """The pictures of every image; G heads, the first of which is the mean of all."""

    original: UInt8[np.ndarray, "B h w 3"]
    heat: UInt8[np.ndarray, "B G h w 3"]
    """attention as brightness, each picture up to its own highest"""
    mass: UInt8[np.ndarray, "B G h w 3"]
    """the image, washed in blue but for the patches that hold most of the attention"""
    names: tuple[str, ...]
    """of the G heads"""
    note: str
    """what one must know to read them rightly"""


@torch.no_grad()
def cls_attention(vit: ViT, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H N"]:
    """How much of the class token's attention in the last block goes to each patch.

    Caron et al. 2021 (DINO), `visualize_attention.py`. What goes to [CLS] itself and to registers is left out.

    Args:
        vit: any ViT; used in evaluation mode and left as it was.
        images: normalized; any size that divides into patches (relative positions: their own only).
    Returns:
        every head's attention, normalized to add up to 1 over the patches.
    """
    last, prefix = len(vit.blocks) - 1, 1 + vit.config.registers
    with evaluating(vit):  # one image at a time: T^2 weights a head are much at a high resolution
        rows = [vit.attention(image[None], (last,))[0][:, :, 0, prefix:] for image in images]
    attention = torch.cat(rows).float()
    return attention / attention.sum(-1, keepdim=True)


def mass_of(attention: Float[Tensor, "*s N"], part: float = MASS) -> Bool[Tensor, "*s N"]:
    """The smallest set of patches that holds `part` of the attention.

    Args:
        attention: not negative, adding up to 1 over the patches.
        part: 0 < part <= 1; DINO 0.6.
    Returns:
        True = in the set.
    """
    ordered, place = attention.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # a patch is taken while those above it do not suffice
    return torch.zeros_like(attention, dtype=torch.bool).scatter(-1, place, before < part)


def attend(
    vit: ViT, images: Float[Tensor, "B C h w"], mean: Sequence[float], std: Sequence[float], part: float = MASS
) -> Maps:
    """Draw the class token's attention over images.

    Args:
        vit: any ViT.
        images: normalized, on its device.
        mean: of the images' normalization.
        std: likewise.
        part: of the attention that the overlays hold.
    Returns:
        pictures of the mean over heads and of every head, and the note.
    """
    shape = grid_of((images.shape[2], images.shape[3]), vit.config.patch_hw)
    heads = cls_attention(vit, images)
    attention = torch.cat([heads.mean(1, keepdim=True), heads], dim=1).cpu()  # [B G N]
    original = enlarge(to_pictures(images, mean, std))
    (b, g), (h, w) = attention.shape[:2], original.shape[1:3]
    level = attention / attention.amax(-1, keepdim=True)
    colors = np.rint(colormaps[COLORS](level.numpy())[..., :3] * 255).astype(np.uint8)
    heat = colors.reshape(b, g, *shape, 3).repeat(h // shape[0], axis=2).repeat(w // shape[1], axis=3)
    kept = mass_of(attention, part)
    mass = np.stack([shade(original, ~kept[:, i], shape) for i in range(g)], axis=1)
    covered = float(kept[:, 1:].float().mean())
    note = (
        f"[CLS] attention of block {len(vit.blocks)} of {len(vit.blocks)} over {shape[0]} x {shape[1]} patches; each "
        f"heat map up to its own highest. Below: the fewest patches that hold {part:.0%} of it, a head's on average "
        f"{covered:.0%} of the image ({part:.0%} would be no preference at all)"
    )
    names = ("all heads", *(f"head {i + 1}" for i in range(g - 1)))
    return Maps(original, heat, mass, names, note)


def draw(maps: Maps, path: str | Path, *, labels: Sequence[str] = (), title: str = "", note: str = "") -> Path:
    """Save two rows an image: heat maps and, below them, the thresholded mass; a column a head.

    Args:
        maps: from `attend`.
        path: of the picture; the suffix chooses the format.
        labels: a name for each image.
        title: one line on top.
        note: to be said before the maps' own.
    Returns:
        the path.
    """
    rows, names = [], []
    for i, image in enumerate(maps.original):
        rows += [[image, *maps.heat[i]], [None, *maps.mass[i]]]
        names += [labels[i] if i < len(labels) else "", ""]
    said = f"{note}. {maps.note}" if note else maps.note
    return save(grid(rows, rows=names if labels else (), columns=("image", *maps.names), title=title, note=said), path)
