"""The views that a method was really given: the quickest way to find a wrong crop, color or mask."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from .grid import grid, save
from .picture import hide, to_pictures


def draw(
    views: Sequence[Float[Tensor, "_ C _ _"]],
    path: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    masks: Sequence[Bool[Tensor, "B _"]] = (),
    grids: Sequence[tuple[int, int]] = (),
    names: Sequence[str] = (),
    most: int = 8,
    title: str = "",
) -> Path:
    """Save the first images of a batch, one column each: every view and, below it, what is hidden.

    Args:
        views: of `Batch.views`, normalized, in the policy's order.
        path: of the picture.
        mean: of the views' normalization.
        std: likewise.
        masks: of `Batch.masks`, for the first views; True = hidden.
        grids: the patch grid (gh, gw) of each mask.
        names: of the views; "view 1 ..." without them.
        most: images drawn.
        title: one line on top.
    Returns:
        the path.
    """
    rows, labels = [], []
    for i, view in enumerate(views):
        name = names[i] if i < len(names) else f"view {i + 1}" if len(views) > 1 else "view"
        pictures = to_pictures(view[:most], mean, std)
        rows.append(list(pictures))
        labels.append(f"{name}\n{view.shape[-2]} x {view.shape[-1]} px")
        if i < len(masks):
            (gh, gw), hidden = grids[i], masks[i][:most]
            rows.append(list(hide(pictures, hidden, (gh, gw))))
            labels.append(f"{float(hidden.float().mean()):.0%} hidden\n{gh} x {gw} patches")
    return save(grid(rows, rows=labels, title=title), path)
