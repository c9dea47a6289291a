"""The dialect of timm's `VisionTransformer` and `Beit`: state dicts, both ways.

    VisionTransformer          ours are timm's names already; registers need their rows of pos_embed
    Beit                       the names of the official BEiT (`beit.py`), without its index buffers

timm gives positions to the class token and the registers (1 + R + N rows), or to the patches alone
(`no_embed_class`, N rows). Ours has 1 + N: what a register's row adds goes into the register, and a
class token without a row gets zeros. timm's `k_bias` is a buffer of zeros that is not stored.
"""

import math

import torch
from torch import Tensor

from . import beit

State = dict[str, Tensor]


def is_beit(state: State) -> bool:
    """Whether names are those of `Beit`: its biases, gammas or relative tables."""
    return any(name.endswith((".q_bias", ".gamma_1", "relative_position_bias_table")) for name in state)


def from_timm(state: State, grid: tuple[int, int] | None = None) -> State:
    """Rename a timm state dict to the names of `vit.ViT`.

    Args:
        state: timm's name -> tensor.
        grid: (gh, gw), where it is known; otherwise a square is looked for.
    """
    if is_beit(state):
        return beit.from_official(state, prefix="")
    ours = dict(state)
    if "pos_embed" in ours:
        registers = ours["reg_token"].shape[1] if "reg_token" in ours else 0
        pos = ours["pos_embed"]
        prefix = _prefix_rows(pos.shape[1], registers, grid)
        if prefix == 0:
            ours["pos_embed"] = torch.cat([torch.zeros_like(pos[:, :1]), pos], dim=1)
        elif prefix == 1 + registers and registers:
            ours["reg_token"] = ours["reg_token"] + pos[:, 1:prefix]
            ours["pos_embed"] = torch.cat([pos[:, :1], pos[:, prefix:]], dim=1)
    return ours


def to_timm(state: State) -> State:
    """Rename the state of `vit.ViT` to timm's; `from_timm` gives it back to the bit.

    A mask token is left out: timm's encoders have none. Positions get rows of zeros for registers.
    """
    theirs = {name: value for name, value in state.items() if name != "mask_token"}
    if any(name.endswith((".q_bias", "relative_position_bias_table")) for name in theirs):
        return beit.to_official(theirs, None, prefix="")
    if "pos_embed" in theirs and "reg_token" in theirs:
        pos = theirs["pos_embed"]
        rows = pos.new_zeros(1, theirs["reg_token"].shape[1], pos.shape[2])
        theirs["pos_embed"] = torch.cat([pos[:, :1], rows, pos[:, 1:]], dim=1)
    return theirs


def _prefix_rows(rows: int, registers: int, grid: tuple[int, int] | None) -> int:
    """Rows of pos_embed before those of the patches."""
    if grid is not None:
        return rows - grid[0] * grid[1]
    squares = [p for p in (1 + registers, 0, 1) if rows >= p and math.isqrt(rows - p) ** 2 == rows - p]
    return squares[0] if squares else 1 + registers
