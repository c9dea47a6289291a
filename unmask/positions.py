"""Where a patch is: grids, fixed sin-cos, learned and relative positions."""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Read a size that may be one number for both sides: (height, width)."""
    return (value, value) if isinstance(value, int) else value


def grid_of(image: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """How many patches fit an image, (gh, gw).

    Raises:
        ValueError: the image does not divide into patches; names the nearest sizes that do.
    """
    if image[0] % patch[0] or image[1] % patch[1] or min(image) < 1:
        fits = [sorted({max(s // p, 1) * p, -(-s // p) * p}) for s, p in zip(image, patch, strict=True)]
        better = (
            " or ".join(map(str, fits[0]))
            if image[0] == image[1] and patch[0] == patch[1]
            else (f"a height of {' or '.join(map(str, fits[0]))} and a width of {' or '.join(map(str, fits[1]))}")
        )
        raise ValueError(
            f"image {image[0]}x{image[1]} does not divide into {patch[0]}x{patch[1]}-px patches; use {better}"
        )
    return image[0] // patch[0], image[1] // patch[1]


def sincos_2d(width: int, grid: tuple[int, int], prefix: int = 0) -> Float[np.ndarray, "T D"]:
    """Fixed 2-D sine-cosine positions: the first half of the features tells the column, the second the row.

    MAE, `util/pos_embed.py`. Each half is [sin | cos] of p * 10000**(-k / (D/4)), concatenated.

    Args:
        width: features, divisible by 4.
        grid: (gh, gw).
        prefix: rows of zeros in front, for the class token.
    Returns:
        float64 [prefix + gh*gw, width].
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, not {width}")
    omega = 10000.0 ** -(np.arange(width // 4, dtype=np.float64) / (width / 4))
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [np.outer(p.reshape(-1), omega) for p in (column, row)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((prefix, width)), table])


def resize_pos_embed(
    pos: Float[Tensor, "1 R_N D"],
    source: tuple[int, int],
    target: tuple[int, int],
    rule: Literal["size", "factor", "antialias"] = "size",
) -> Float[Tensor, "1 _ D"]:
    """Stretch learned positions to another grid, bicubic; the rows before the patches are copied.

    Three rules, because the repositories differ and their numbers do too: `size` samples at the scale
    g/g' (MAE, BEiT), `factor` at g/(g'+0.1) (DINO, iBOT: the +0.1 dodges a rounding error), `antialias`
    filters first (timm).
    """
    if source == target:
        return pos
    prefix, table = pos.split([pos.shape[1] - source[0] * source[1], source[0] * source[1]], dim=1)
    image = table.float().reshape(1, *source, -1).permute(0, 3, 1, 2)
    if rule == "factor":
        # DINO divides by sqrt(N) on both axes; on its square tables that is the grid's side
        factors = tuple((t + 0.1) / s for t, s in zip(target, source, strict=True))
        image = F.interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        antialias = rule == "antialias"
        image = F.interpolate(image, size=target, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([prefix, image.permute(0, 2, 3, 1).flatten(1, 2).to(pos.dtype)], dim=1)


def relative_position_index(grid: tuple[int, int]) -> Int[Tensor, "T T"]:
    """Which row of the bias table each (query, key) pair reads; BEiT, fidelity to the last index.

    Patches i -> j: (row_i - row_j + gh - 1) * (2 gw - 1) + (col_i - col_j + gw - 1). The last three
    rows of the table serve class -> patch, patch -> class and class -> class.
    """
    gh, gw = grid
    row, column = torch.meshgrid(torch.arange(gh), torch.arange(gw), indexing="ij")
    row, column = row.flatten(), column.flatten()
    rows = (2 * gh - 1) * (2 * gw - 1) + 3
    index = torch.empty(gh * gw + 1, gh * gw + 1, dtype=torch.int64)
    index[1:, 1:] = (row[:, None] - row + gh - 1) * (2 * gw - 1) + (column[:, None] - column + gw - 1)
    index[0, :], index[:, 0], index[0, 0] = rows - 3, rows - 2, rows - 1
    return index


def resize_relative(
    table: Float[Tensor, "R H"], source: tuple[int, int], target: tuple[int, int]
) -> Float[Tensor, "_ H"]:
    """Stretch a table of relative positions to another grid; the three rows of the class token are copied.

    BEiT, `run_class_finetuning.py`: displacements near zero keep their places and farther ones lie ever
    farther apart, in steps 1, q, q^2, ..., with q such that the outermost meet those of the target; between
    them a cubic spline. The original is for square grids; here each axis has its own q.

    Args:
        table: (2 gh - 1)(2 gw - 1) + 3 rows, in the order of `relative_position_index`.
        source: its grid, (gh, gw).
        target: the grid wanted.
    """
    from scipy.interpolate import RectBivariateSpline  # half a second, for those who resize

    old, new = ([2 * side - 1 for side in grid] for grid in (source, target))
    places = [_geometric(a, b) for a, b in zip(old, new, strict=True)]
    wanted = [np.arange(side) - side // 2 for side in new]
    kx, ky = (min(3, side - 1) for side in old)
    if min(kx, ky) < 1:
        raise ValueError(
            f"relative positions of a {source[0]}x{source[1]} grid are too few to resize; use its own size"
        )
    heads = []
    for head in table[:-3].detach().unbind(1):
        spline: Any = RectBivariateSpline(places[0], places[1], head.reshape(old).double().numpy(), kx=kx, ky=ky, s=0)
        heads.append(spline(*wanted).reshape(-1))
    return torch.cat([torch.from_numpy(np.stack(heads, axis=1)).to(table), table[-3:]])


def _geometric(old: int, new: int) -> Float[np.ndarray, "_"]:
    """Where `old` displacements lie among `new` ones: -1 - q - q^2, -1 - q, -1, 0, 1, ..."""
    half = old // 2
    if old == new:
        return np.arange(old, dtype=np.float64) - half
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**half) / (1 - q) > new // 2 else (q, high)
    side = np.cumsum(((low + high) / 2) ** np.arange(half))
    return np.concatenate([-side[::-1], [0.0], side])


class RelativePositionBias(nn.Module):
    """A learned number per head and displacement, added to the attention logits (BEiT)."""

    relative_position_index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int):
        super().__init__()
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.register_buffer("relative_position_index", relative_position_index(grid), persistent=False)

    def forward(self) -> Float[Tensor, "H T T"]:
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
