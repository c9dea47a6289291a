"""From a pre-trained ViT's weights to those that its fine-tuning begins with.

What the official scripts do before `load_state_dict`: the head and the mask token go, positions are resized,
a shared relative table is copied into every block, and a classifier that normalizes after pooling starts from a
fresh fc_norm, not from the pre-trained norm.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from ..positions import resize_pos_embed, sincos_2d
from ..vit import ViT, ViTConfig

_TABLE = "rel_pos_bias.relative_position_bias_table"


def finetuned_from(state: dict[str, Tensor], old: ViTConfig, vit: ViT) -> list[str]:
    """Start a classifier from pre-trained weights, in place.

    Args:
        state: of a ViT of configuration `old`.
        vit: the classifier; widths and depths must be those of `old`, its image size need not.
    Returns:
        the names that begin afresh: the head, and a norm that `old` does not have.
    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    new = vit.config
    taken = {n: v for n, v in state.items() if not n.startswith("head.") and n != "mask_token"}
    if not new.mask_token:
        taken.pop("mask_token", None)
    drop = "norm." if new.normalizes_after_pooling else "fc_norm."
    taken = {n: v for n, v in taken.items() if not n.startswith(drop)}
    if "pos_embed" in taken and old.grid != new.grid:
        taken["pos_embed"] = _positions(taken["pos_embed"], old, new)
    if old.rel_pos == "shared" and new.rel_pos == "per-block":
        table = taken.pop(_TABLE)
        taken |= {f"blocks.{i}.attn.{_TABLE}": table.clone() for i in range(new.depth)}
    for name in [n for n in taken if n.endswith(_TABLE)]:
        taken[name] = resize_relative_table(taken[name], old.grid, new.grid)
    own = vit.state_dict()
    fresh = sorted(own.keys() - taken.keys())
    wrong = sorted(taken.keys() - own.keys()) + [n for n in fresh if not n.startswith(("head.", "fc_norm.", "norm."))]
    wrong += [n for n in taken.keys() & own.keys() if taken[n].shape != own[n].shape]
    if wrong:
        raise ValueError(f"fine-tuning: {wrong[0]} and {len(wrong) - 1} more tensors do not fit the classifier")
    vit.load_state_dict(taken, strict=False)
    return fresh


def _positions(pos: Float[Tensor, "1 _ D"], old: ViTConfig, new: ViTConfig) -> Float[Tensor, "1 _ D"]:
    """Positions on the new grid: sin-cos computed anew, learned ones resized by the method's own rule."""
    if old.pos_embed == "sincos":
        return torch.from_numpy(sincos_2d(old.width, new.grid, prefix=1)).to(pos).unsqueeze(0)
    return resize_pos_embed(pos, old.grid, new.grid, old.pos_resize)


def resize_relative_table(
    table: Float[Tensor, "R H"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "_ H"]:
    """Stretch a relative position table to another square grid, as BEiT's fine-tuning does.

    The old displacements are put at geometrically growing distances, so that near ones keep their resolution,
    and each head's table is read off a cubic spline at the new whole displacements. The last three rows (class
    token) stay. The original's `scipy.interpolate.interp2d` is gone; this spline is the same one.

    Raises:
        ValueError: a grid is not square.
    """
    if old == new:
        return table
    if old[0] != old[1] or new[0] != new[1]:
        raise ValueError(f"relative positions are resized between square grids only, not {old} -> {new}")
    side, wanted = 2 * old[0] - 1, 2 * new[0] - 1
    x = geometric_coordinates(side, wanted)
    at = np.arange(-(wanted // 2), wanted // 2 + 1, dtype=np.float64)
    heads = []
    for z in table[:-3].double().T.reshape(-1, side, side).cpu().numpy():  # [row, column]
        spline = RectBivariateSpline(x, x, z.T, kx=3, ky=3, s=0)
        heads.append(torch.from_numpy(spline(at, at).T.copy()).flatten())
    return torch.cat([torch.stack(heads, dim=1).to(table), table[-3:]])


def geometric_coordinates(side: int, wanted: int) -> Float[np.ndarray, "side"]:
    """Where `side` old displacements lie: 0, +-1, +-(1 + q), +-(1 + q + q^2), ..., the last near wanted // 2.

    q is found by bisection in [1.01, 1.5] to 1e-6, as the original does: 27 -> 47 gives 1.09031.
    """
    low, high, reach = 1.01, 1.5, side // 2
    q = low
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**reach) / (1 - q) > wanted // 2:
            high = q
        else:
            low = q
    outward = np.cumsum(q ** np.arange(reach))
    return np.concatenate([-outward[::-1], [0.0], outward])
