"""The architecture of a ViT, told from its tensors; what they do not tell is asked for or printed."""

import math
import re
from typing import Any

import torch

from ..positions import grid_of, sincos_2d
from ..vit import SIZES, ViT, ViTConfig
from .loaded import About, State

_TABLE = "rel_pos_bias.relative_position_bias_table"
PUBLISHED = {(SIZES[name]["width"], SIZES[name]["depth"]): SIZES[name]["heads"] for name in list(SIZES)[2:]}
"""heads of the sizes that papers name, by width and depth"""


_SIDES = {
    "patch_embed.proj.weight": 4,
    "mlp.fc1.bias": 1,
    "cls_token": 3,
    "pos_embed": 3,
    "reg_token": 3,
    "head.weight": 2,
    "relative_position_bias_table": 2,
}
"""sides of the tensors that tell an architecture, by the ends of their names"""


def architecture(
    state: State,
    *,
    heads: int | None = None,
    said: int | None = None,
    grid: tuple[int, int] | None = None,
    **dialect: Any,
) -> tuple[ViTConfig, tuple[str, ...]]:
    """Tell a ViT's configuration from its tensors.

    Args:
        state: by the names of `vit.ViT`.
        heads: attention heads that the user gave.
        said: attention heads by the file's own settings.
        grid: (gh, gw) where it is known; otherwise sin-cos positions tell it, and learned ones are taken for a square.
        dialect: other fields of ViTConfig, which the dialect knows: `pos_resize`, `norm_eps`, `gelu`, `init`.
    Returns:
        the configuration, and what was taken for granted.
    Raises:
        ValueError: a tensor without which there is no ViT is missing, the grid cannot be told, or the
            heads cannot be.
    """
    check_sides(state)
    try:
        width, channels, *patch = state["patch_embed.proj.weight"].shape
        hidden = len(state["blocks.0.mlp.fc1.bias"])
    except KeyError as error:
        raise ValueError(f"there is no {error.args[0]}: this is no Vision Transformer") from None
    ph, pw = patch
    depth = 1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    notes: list[str] = []
    if grid is None:
        grid, taken = _grid(state, (ph, pw))
        notes += taken
    size = (grid[0] * ph, grid[1] * pw)
    table = next((value for name, value in state.items() if name.endswith(_TABLE)), None)
    config = ViTConfig(
        image_size=size[0] if size[0] == size[1] else size,
        patch=ph if ph == pw else (ph, pw),
        channels=channels,
        width=width,
        depth=depth,
        heads=_heads(width, depth, heads, said, None if table is None else table.shape[1], notes),
        mlp_ratio=hidden / width,
        pos_embed=_positions(state, grid),
        rel_pos="none" if table is None else "shared" if _TABLE in state else "per-block",
        qkv_bias=_first(state, {"blocks.0.attn.qkv.bias": "full", "blocks.0.attn.q_bias": "qv"}),
        layer_scale=0.1 if "blocks.0.ls1.gamma" in state else None,  # where fresh gammas would begin
        registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
        mask_token="mask_token" in state,
        classes=len(state["head.weight"]) if "head.weight" in state else 0,
        pool="mean" if "fc_norm.weight" in state else "cls",
        **dialect,
    )
    return config, tuple(notes)


def check_sides(state: State) -> None:
    """Compare the number of sides of the tensors that an architecture is told from.

    Raises:
        ValueError: a tensor has others; names it.
    """
    for name, value in state.items():
        sides = next((n for end, n in _SIDES.items() if name == end or name.endswith(f".{end}")), value.ndim)
        if value.ndim != sides or 0 in value.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, and {sides} sides are wanted; the file is damaged")


def check(config: ViTConfig, state: State, looks: str) -> None:
    """Compare tensors with a configuration, name by name and shape by shape.

    Raises:
        ValueError: lists what is missing, what is unexpected, and what has another shape.
    """
    placed = config.pos_embed != "none" or config.rel_pos != "none"
    hidden, patches = int(config.width * config.mlp_ratio), config.grid[0] * config.grid[1] if placed else 0
    sizes = (config.width, hidden, config.depth, patches, *config.patch_hw, config.classes, config.registers)
    if max(sizes) > max((side for value in state.values() for side in value.shape), default=0) + len(state):
        # told before anything of that size is made
        raise ValueError(f"it looks like {looks}, but its tensors are far smaller than its configuration says: {sizes}")
    with torch.device("meta"):
        want = {name: tuple(value.shape) for name, value in ViT(config).state_dict().items()}
    have = {name: tuple(value.shape) for name, value in state.items()}
    problems = {
        "missing": sorted(want.keys() - have.keys()),
        "unexpected": sorted(have.keys() - want.keys()),
        "of another shape": [f"{n} {have[n]} not {want[n]}" for n in want if n in have and want[n] != have[n]],
    }
    found = [
        f"{kind}: {', '.join(n[:8])}{f' and {len(n) - 8} more' * (len(n) > 8)}" for kind, n in problems.items() if n
    ]
    if found:
        raise ValueError(f"it looks like {looks}, but does not fit: {'; '.join(found)}")


def heads_said(about: About, state: State) -> int | None:
    """Attention heads by the saved settings: a number, or the size in the model's name if its width agrees."""
    number, name = about.args.get("num_heads"), about.args.get("model") or about.args.get("arch") or ""
    if isinstance(number, int):
        return number
    width = state["cls_token"].shape[-1] if "cls_token" in state else 0
    for size, sizes in SIZES.items():  # mae_vit_base_patch16, vit_small
        if re.search(rf"(?:^|[_-]){size}(?:[_-]|$)", str(name)) and sizes["width"] == width:
            return sizes["heads"]
    return None


def _heads(width: int, depth: int, asked: int | None, said: int | None, table: int | None, notes: list[str]) -> int:
    """By falling certainty: the relative table's columns, the file's settings, the user, the papers."""
    certain = table or said
    if asked is not None and certain is not None and asked != certain:
        raise ValueError(f"--heads {asked}: the file says {certain}; leave --heads out")
    heads = certain or asked
    if heads is None:
        heads = PUBLISHED.get((width, depth))
        if heads is None:
            raise ValueError(
                f"a ViT {width} wide and {depth} deep is of no published size, and its tensors do not tell its "
                f"attention heads; give --heads N"
            )
        notes.append(f"{heads} heads, as published for width {width} and depth {depth}; --heads N if it has others")
    if width % heads:
        raise ValueError(f"--heads {heads} does not divide the width {width}; give one that does")
    return heads


def _grid(state: State, patch: tuple[int, int]) -> tuple[tuple[int, int], list[str]]:
    pos = state.get("pos_embed")
    table = next((value for name, value in state.items() if name.endswith(_TABLE)), None)
    if pos is not None:
        n = pos.shape[1] - 1
        for gh in range(1, n + 1):
            if n % gh == 0 and _is_sincos(state, (gh, n // gh)):
                return (gh, n // gh), []
        side = math.isqrt(max(n, 0))
        if side * side != n or not n:
            raise ValueError(f"its {n} learned positions make no square grid, and nothing in the file tells its shape")
        return (side, side), [f"its {n} learned positions are taken for a square grid, {side}x{side}"]
    if table is not None:
        side = math.isqrt(len(table) - 3)
        if side * side == len(table) - 3 and side % 2:
            return ((side + 1) // 2, (side + 1) // 2), []
        raise ValueError(f"its relative table of {len(table)} rows is of no square grid, and nothing tells its shape")
    size = (max(224 // patch[0], 1) * patch[0], max(224 // patch[1], 1) * patch[1])
    return grid_of(size, patch), [f"it has no positions: taken for {size[0]}x{size[1]} px"]


def _positions(state: State, grid: tuple[int, int]) -> Any:
    if "pos_embed" not in state:
        return "none"
    return "sincos" if _is_sincos(state, grid) else "learned"


def _is_sincos(state: State, grid: tuple[int, int]) -> bool:
    """Whether positions are MAE's fixed ones: to 1e-6, or to the precision of a file with fewer digits."""
    pos = state["pos_embed"]
    if not pos.is_floating_point() or pos.shape[2] % 4 or pos.shape[1] != 1 + grid[0] * grid[1] or pos[0, 0].any():
        return False
    fixed = torch.from_numpy(sincos_2d(pos.shape[2], grid, prefix=1)).to(pos.dtype)
    digits = max(1e-6, torch.finfo(pos.dtype).eps) if pos.dtype.itemsize < 4 else 1e-6
    return torch.allclose(pos[0].double(), fixed.double(), rtol=0, atol=digits)


def _first(state: State, known: dict[str, Any]) -> Any:
    return next((value for name, value in known.items() if name in state), "none")
