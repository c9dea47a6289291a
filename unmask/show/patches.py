"""What patches have in common: their features as colors, and which patches of other images are nearest."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from sklearn.cluster import KMeans
from torch import Tensor

from ..evaluate.features import evaluating
from ..vit import ViT
from .grid import grid, save
from .picture import enlarge, frame, paste, to_pictures

COLUMNS = ("image", "features", "nearest", "prototype")
QUERIES = ((230, 159, 0), (86, 180, 233), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 158, 115))
"""red, green and blue of each query's box: told apart by the color-blind (Okabe and Ito 2008)"""


class Panels(NamedTuple):
    """The pictures of every image."""

    original: UInt8[np.ndarray, "B h w 3"]
    colors: UInt8[np.ndarray, "B h w 3"]
    """three principal components of the patch features as red, green and blue"""
    nearest: UInt8[np.ndarray, "B h w 3"]
    """the first image's query patches, and in each other image the patch nearest to each, in its color"""
    cosine: Float[np.ndarray, "B Q"]
    """between a query and the patch that is marked for it; 1 in the first image"""
    note: str
    """what one must know to read them rightly"""
    prototypes: UInt8[np.ndarray, "B h w 3"] | None = None
    """the patches of the most frequent prototypes, a color each, over the image in gray; None: not asked for"""


@torch.no_grad()
def features(vit: ViT, images: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
    """Patch tokens after the final norm, at length 1, and their grid; the ViT is left as it was."""
    with evaluating(vit):  # one image at a time: attention is much at a high resolution
        tokens = [vit(image[None]) for image in images]
    return F.normalize(torch.cat([t.patches for t in tokens]).float(), dim=-1).cpu(), tokens[0].grid


def principal_colors(patches: Float[Tensor, "B N D"]) -> tuple[Float[Tensor, "B N 3"], float]:
    """Project patches of all images on their first three principal components.

    Oquab et al. 2023 (DINOv2), Figure 1, without its threshold for the background.

    Returns:
        components in [0, 1], cut off at their 1 % and 99 % quantiles; the part of the variance they hold.
    """
    flat = patches.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(flat.t() @ flat)  # ascending
    axes = vectors[:, -3:].flip(-1)
    # an axis has no direction of its own: let its largest entry be positive
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    shares = flat @ axes
    low, high = torch.quantile(shares[:: len(shares) // 100_000 + 1], torch.tensor([0.01, 0.99]).double(), dim=0)
    held = values[-3:].clamp(min=0).sum() / values.clamp(min=0).sum().clamp(min=1e-12)
    scaled = ((shares - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return scaled.float().unflatten(0, patches.shape[:2]), float(held)


def representatives(patches: Float[Tensor, "N D"], count: int, seed: int = 0) -> Int[Tensor, "Q"]:
    """Choose patches that stand for the parts of one image: the nearest to each center of k-means.

    Args:
        patches: features at length 1.
        count: wanted; fewer where the image has fewer different patches.
        seed: of k-means' start.
    Returns:
        their places, in raster order.
    """
    count = min(count, len(torch.unique(patches, dim=0)))
    centers = KMeans(count, n_init="auto", random_state=seed).fit(patches.numpy()).cluster_centers_
    return (F.normalize(torch.from_numpy(centers), dim=-1).to(patches) @ patches.t()).argmax(1).unique()


def nearest(
    patches: Float[Tensor, "B N D"], queries: Int[Tensor, "Q"]
) -> tuple[Int[Tensor, "B Q"], Float[Tensor, "B Q"]]:
    """In every image the patch nearest to each query patch of the first, by cosine; its place and the cosine."""
    cosine = torch.einsum("qd,bnd->bqn", patches[0, queries], patches)
    highest, place = cosine.max(-1)
    place[0], highest[0] = queries, 1.0  # itself, whatever twins it has
    return place, highest


def frequent(ids: Int[Tensor, "B N"], count: int) -> list[int]:
    """The prototypes that most patches of all images have, the most frequent first; at most `count`."""
    found, times = ids.unique(return_counts=True)
    return found[times.argsort(descending=True, stable=True)[:count]].tolist()


def compare(
    vit: ViT,
    images: Float[Tensor, "B C h w"],
    mean: Sequence[float],
    std: Sequence[float],
    count: int = 5,
    ids: Int[Tensor, "B N"] | None = None,
) -> Panels:
    """Draw what the patch features of images have in common.

    Args:
        vit: any ViT.
        images: normalized, on its device; any size that divides into patches (relative positions: their own).
        mean: of the images' normalization.
        std: likewise.
        count: query patches of the first image, at most six.
        ids: the prototype of each patch of these images (iBOT); None: a network that has none.
    Returns:
        three stacks of pictures, or four with `ids`, the cosines, and the note.
    """
    patches, shape = features(vit, images)
    components, held = principal_colors(patches)
    place, cosine = nearest(patches, representatives(patches[0], min(count, len(QUERIES))))
    original = enlarge(to_pictures(images, mean, std))
    ph, pw = original.shape[1] // shape[0], original.shape[2] // shape[1]
    levels = np.rint(components.numpy() * 255).astype(np.uint8)
    colors = levels.reshape(len(images), *shape, 3).repeat(ph, axis=1).repeat(pw, axis=2)
    marked = original.copy()
    for picture, places in zip(marked, place, strict=True):
        for i, at in enumerate(places.tolist()):
            ring = places[:i].tolist().count(at)  # several queries can have one nearest patch
            frame(picture, (at // shape[1] * ph, at % shape[1] * pw), (ph, pw), QUERIES[i], ring)
    note = (
        f"colors: three principal components of all images' patch features, {held:.0%} of their variance; one color, "
        "one kind of patch. Boxes: patches that stand for parts of the first image and, in the same color, the "
        "nearest patch of each other image by cosine; there is always one, alike or not"
    )
    if ids is None:
        return Panels(original, colors, marked, cosine.numpy(), note)
    chosen = frequent(ids, len(QUERIES))
    same = original.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    for color, one in zip(QUERIES, chosen, strict=False):
        flat = np.broadcast_to(np.array(color, np.uint8), same.shape)
        same = paste(same, flat, ids == one, shape)
    note += (
        f". Prototype: patches whose largest prototype is one of the {len(chosen)} most frequent of these images' "
        f"{len(ids.unique())}, a color each; the rest is gray"
    )
    return Panels(original, colors, marked, cosine.numpy(), note, same)


def draw(panels: Panels, path: str | Path, *, labels: Sequence[str] = (), title: str = "") -> Path:
    """Save one row an image.

    Args:
        panels: from `compare`.
        path: of the picture; the suffix chooses the format.
        labels: a name for each image; the cosines of its nearest patches are written below.
        title: one line on top.
    Returns:
        the path.
    """
    drawn = [stack for stack in (*panels[:3], panels.prototypes) if stack is not None]
    rows = [list(row) for row in zip(*drawn, strict=True)]
    said = ["queries", *(f"cosine {c.min():.2f} to {c.max():.2f}" for c in panels.cosine[1:])]
    names = [f"{name}\n{line}".strip() for name, line in zip(list(labels) or [""] * len(rows), said, strict=True)]
    return save(grid(rows, rows=names, columns=COLUMNS[: len(drawn)], title=title, note=panels.note), path)
