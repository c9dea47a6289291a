"""From what a network sees to what a person sees: normalized tensors to uint8 pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

GRAY = 128
"""what a hidden patch looks like"""
WASH, CLEAR = (47, 93, 155), 0.35
"""red, green and blue that lie over patches that are not meant, and how much of their gray shows through"""


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


def enlarge(pictures: UInt8[np.ndarray, "B _ _ 3"], least: int = 160) -> UInt8[np.ndarray, "B h w 3"]:
    """Repeat pixels by a whole factor, so that the longer side has `least` of them: room for boxes and frames."""
    factor = -(-least // max(pictures.shape[1:3]))
    return pictures.repeat(factor, axis=1).repeat(factor, axis=2)


def shade(
    pictures: UInt8[np.ndarray, "B h w 3"], mask: Bool[Tensor, "B N"], grid: tuple[int, int]
) -> UInt8[np.ndarray, "B h w 3"]:
    """Wash the patches where `mask` is True in one color, which black and white parts show alike."""
    gray = pictures.mean(-1, keepdims=True) * CLEAR
    washed = np.rint(gray + np.array(WASH) * (1 - CLEAR)).astype(np.uint8)
    return np.where(_pixelwise(mask, grid, pictures.shape[1:3]), washed, pictures)


def frame(
    picture: UInt8[np.ndarray, "h w 3"],
    corner: tuple[int, int],
    size: tuple[int, int],
    color: tuple[int, int, int],
    ring: int = 0,
) -> None:
    """Draw a box into a picture, around what it marks: colored, with a black rim to be seen on any ground.

    Args:
        picture: is changed.
        corner: top and left of the marked part, in pixels.
        size: its height and width.
        color: red, green, blue.
        ring: boxes that are there already; this one goes around them.
    """
    line = max(1, round(max(picture.shape[:2]) / 80))
    within = _box(picture, corner, size, 2 * line * ring)
    for width, ink in ((2 * line, (0, 0, 0)), (line + line // 2, color)):
        picture[_box(picture, corner, size, 2 * line * ring + width) & ~within] = ink


def _box(
    picture: UInt8[np.ndarray, "h w 3"], corner: tuple[int, int], size: tuple[int, int], margin: int
) -> Bool[np.ndarray, "h w"]:
    """True in a box and up to `margin` pixels around it."""
    (top, left), (h, w), box = corner, size, np.zeros(picture.shape[:2], bool)
    box[max(top - margin, 0) : top + h + margin, max(left - margin, 0) : left + w + margin] = True
    return box


def _pixelwise(mask: Bool[Tensor, "B N"], grid: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "B h w 1"]:
    (gh, gw), (h, w) = grid, size
    if mask.shape[1] != gh * gw or h % gh or w % gw:
        raise ValueError(
            f"a mask of {mask.shape[1]} patches on a {gh} x {gw} grid does not fit pictures of {h} x {w}; "
            "give the grid of the view that the mask was drawn for"
        )
    tiles = mask.detach().cpu().numpy().reshape(-1, gh, gw, 1)
    return tiles.repeat(h // gh, axis=1).repeat(w // gw, axis=2)
