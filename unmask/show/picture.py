"""From what a network sees to what a person sees: normalized tensors to uint8 pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

GRAY = 128
"""what a hidden patch looks like"""


def to_pictures(
    images: Float[Tensor, "B C h w"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[np.ndarray, "B h w 3"]:
    """Undo the normalization.

    Args:
        images: normalized; one channel becomes gray, three are red, green and blue, of more the first
            three bands are shown, of two the first in gray.
        mean: what was subtracted, one number a channel, for images in [0, 1].
        std: what was divided by.
    Returns:
        pixels, rounded and clipped to 0 ... 255.
    """
    images = images.detach().float().cpu()
    offset, spread = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))
    pixels = (images * spread + offset)[:, : 3 if images.shape[1] >= 3 else 1]
    levels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def hide(
    pictures: UInt8[np.ndarray, "B h w 3"], mask: Bool[Tensor, "B N"], grid: tuple[int, int]
) -> UInt8[np.ndarray, "B h w 3"]:
    """Paint the hidden patches gray; the arguments stay as they are."""
    return np.where(_pixelwise(mask, grid, pictures.shape[1:3]), np.uint8(GRAY), pictures)


def paste(
    pictures: UInt8[np.ndarray, "B h w 3"],
    patches: UInt8[np.ndarray, "B h w 3"],
    mask: Bool[Tensor, "B N"],
    grid: tuple[int, int],
) -> UInt8[np.ndarray, "B h w 3"]:
    """Take the hidden patches from `patches` and the visible ones from `pictures`."""
    return np.where(_pixelwise(mask, grid, pictures.shape[1:3]), patches, pictures)


def _pixelwise(mask: Bool[Tensor, "B N"], grid: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "B h w 1"]:
    (gh, gw), (h, w) = grid, size
    if mask.shape[1] != gh * gw or h % gh or w % gw:
        raise ValueError(
            f"a mask of {mask.shape[1]} patches on a {gh} x {gw} grid does not fit pictures of {h} x {w}; "
            "give the grid of the view that the mask was drawn for"
        )
    tiles = mask.detach().cpu().numpy().reshape(-1, gh, gw, 1)
    return tiles.repeat(h // gh, axis=1).repeat(w // gw, axis=2)
