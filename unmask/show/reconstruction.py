"""What MAE paints where it saw nothing: original, masked, reconstruction, pasted."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ..evaluate.features import evaluating
from ..methods.mae import MAE, denormalize, unpatchify
from .grid import grid, save
from .picture import hide, paste, to_pictures

COLUMNS = ("original", "masked", "reconstruction", "pasted")
OWN_STATISTICS = (
    "each hidden patch de-normalized with its own true mean and variance: contrast and brightness leak, "
    "structure does not. Visible patches of the reconstruction are noise, for nothing trains them"
)


class Panels(NamedTuple):
    """The four pictures of every image."""

    original: UInt8[np.ndarray, "B h w 3"]
    masked: UInt8[np.ndarray, "B h w 3"]
    """hidden patches gray"""
    reconstruction: UInt8[np.ndarray, "B h w 3"]
    """all patches as predicted; visible ones are not trained and look it"""
    pasted: UInt8[np.ndarray, "B h w 3"]
    """visible patches from the original, hidden ones from the reconstruction"""
    note: str
    """what one must know to read them rightly, or nothing"""


@torch.no_grad()
def reconstruct(
    method: MAE,
    images: Float[Tensor, "B C h w"],
    mask: Bool[Tensor, "B N"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Panels:
    """Let a model fill in what the mask hides.

    He et al. 2021, Figures 2 to 4. A model that predicts normalized pixels cannot know a patch's mean
    and deviation; they are taken from the truth (unbiased variance, 1e-6 in the root), and the note
    says so.

    Args:
        method: an MAE; used in evaluation mode and left as it was.
        images: normalized, on the method's device.
        mask: True = hidden; the same number in every image.
        mean: of the images' normalization.
        std: likewise.
    Returns:
        four stacks of pictures, and the note.
    Raises:
        ValueError: the images differ in their number of hidden patches.
    """
    counts = (~mask).sum(1)
    if counts.unique().numel() > 1:
        raise ValueError(
            f"the masks leave {int(counts.min())} to {int(counts.max())} patches visible; "
            "MAE needs one number for all images"
        )
    with evaluating(method):
        patches = method.reconstruct(images, mask).float()
    if method.norm_pixels:
        patches = denormalize(patches, images, method.patch)
    patch_grid = images.shape[2] // method.patch[0], images.shape[3] // method.patch[1]
    original = to_pictures(images, mean, std)
    painted = to_pictures(unpatchify(patches, method.patch, patch_grid), mean, std)
    masked, pasted = hide(original, mask, patch_grid), paste(original, painted, mask, patch_grid)
    return Panels(original, masked, painted, pasted, OWN_STATISTICS if method.norm_pixels else "")


def draw(panels: Panels, path: str | Path, *, labels: Sequence[str] = (), title: str = "") -> Path:
    """Save one row an image.

    Args:
        panels: from `reconstruct`.
        path: of the picture; the suffix chooses the format.
        labels: a name for each image.
        title: one line on top.
    Returns:
        the path.
    """
    rows = [list(row) for row in zip(*panels[:4], strict=True)]
    return save(grid(rows, rows=labels, columns=COLUMNS, title=title, note=panels.note), path)
