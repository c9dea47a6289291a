"""The dialect of timm's `VisionTransformer` and `Beit`: state dicts, both ways.

    VisionTransformer          ours are timm's names already; registers need their rows of pos_embed
    Beit                       the names of the official BEiT (`beit.py`), without its index buffers

timm gives positions to the class token and the registers (1 + R + N rows), or to the patches alone
(`no_embed_class`, N rows). Ours has 1 + N: what a register's row adds goes into the register, and a
class token without a row gets zeros. timm's `k_bias` is a buffer of zeros that is not stored.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..positions import grid_of
from . import beit
from .architecture import architecture, heads_said
from .loaded import HALF, IMAGENET, About, Loaded, State

_GELU: dict[str, Any] = {"gelu": "erf", "gelu_tanh": "tanh"}
"""act_layer in config.json, and ours"""


def load(state: State, about: About) -> Loaded:
    """Read a state dict of `VisionTransformer` or `Beit`; also a DeiT or a fine-tuned MAE, whose names are the same.

    config.json of timm's own folder says heads, image size, GELU and pooling (`model_args`), and how its input
    is normalized and what its classes are called (`pretrained_cfg`).

    Raises:
        ValueError: the config says what ours cannot do.
    """
    config, beits = about.config, is_beit(state)
    said = _entry(config, "model_args")
    input_: dict[str, Any] = {"label_names": config.get("label_names")} | _entry(config, "pretrained_cfg")
    act, pool = said.get("act_layer") or "gelu", said.get("global_pool", config.get("global_pool"))
    if act not in _GELU:
        raise ValueError(f"config.json says act_layer {act}; {', '.join(_GELU)} can be loaded")
    patch = tuple(state["patch_embed.proj.weight"].shape[2:])
    size = said.get("img_size") or (input_.get("input_size") or [])[-2:]
    grid = grid_of(_both(size), patch) if size and len(patch) == 2 else None
    args = {"model": config.get("architecture"), "num_heads": said.get("num_heads")} | dict(about.args)
    vit = from_timm(state, grid)
    official = about.wrapper == "model"  # DeiT's and MAE's programs save it so; both resize without a filter
    model, notes = architecture(
        vit,
        heads=about.heads,
        said=heads_said(about._replace(args=args), vit),
        grid=grid,
        pos_resize="size" if official else "antialias",
        gelu=_GELU[act],
        init="beit" if beits else "timm",
    )
    if model.classes and pool not in (None, "token", "avg"):
        raise ValueError(f"config.json says global_pool {pool}; token and avg can be loaded")
    if model.classes and pool == "avg" and model.pool == "cls":  # no fc_norm: the norm comes before the mean
        model = replace(model, pool="mean", head_norm="before")
    if not official and "mean" not in input_:
        usual = "0.5" if beits else "ImageNet's mean and deviation; some of timm's want 0.5"
        notes = (*notes, f"input normalized with {usual}: timm:NAME knows")
    defaults = zip(("mean", "std"), HALF if beits else IMAGENET, strict=True)
    mean, std = (tuple(map(float, input_.get(name, usual))) for name, usual in defaults)
    names = tuple(map(str, input_["label_names"] or ())) if model.classes else ()
    looks = "a fine-tuned MAE or DeiT" if official else f"a {'Beit' if beits else 'VisionTransformer'} of timm"
    return Loaded(looks, model, vit, mean=mean, std=std, classes=names, notes=notes)


def load_named(name: str) -> Loaded:
    """Read `timm:NAME`: what `timm.create_model(NAME, pretrained=True)` has.

    Raises:
        ValueError: timm is missing, has no such model or no weights for it, or it is another architecture.
    """
    try:
        import timm
    except ImportError:
        raise ValueError(f"timm:{name} needs timm: pip install 'unmask[hub]'") from None
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm's own, the hub's and the network's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"timm:{name} could not be made: {reason[0]}") from error
    return of_model(model, name)


def of_model(model: Any, name: str) -> Loaded:
    """Read a model that timm made: its tensors, heads, epsilon, GELU and input.

    Raises:
        ValueError: it is neither a VisionTransformer nor a Beit, or it has parts that ours has not.
    """
    kind = type(model).__name__
    if kind not in ("VisionTransformer", "Beit"):
        raise ValueError(f"timm:{name} is a {kind}; only VisionTransformer and Beit can be loaded")
    block, input_ = model.blocks[0], model.pretrained_cfg
    act = str(block.mlp.act)
    if "GELU" not in act:
        raise ValueError(f"timm:{name} has the activation {act}; only GELU can be loaded")
    size = [g * p for g, p in zip(model.patch_embed.grid_size, model.patch_embed.patch_size, strict=True)]
    said = {"num_heads": block.attn.num_heads, "img_size": size, "act_layer": "gelu_tanh" if "tanh" in act else "gelu"}
    about = About(config={"model_args": said, "pretrained_cfg": dict(input_)})
    loaded = load({key: value.detach() for key, value in model.state_dict().items()}, about)
    return replace(loaded, looks=f"timm's {name}", vit=replace(loaded.vit, norm_eps=block.norm1.eps), notes=())


def is_folder(config: Mapping[str, Any]) -> bool:
    """Whether config.json is timm's own."""
    return isinstance(config.get("pretrained_cfg") or config.get("model_args"), dict)


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


def _entry(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _both(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size as timm writes it."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _prefix_rows(rows: int, registers: int, grid: tuple[int, int] | None) -> int:
    """Rows of pos_embed before those of the patches."""
    if grid is not None:
        return rows - grid[0] * grid[1]
    squares = [p for p in (1 + registers, 0, 1) if rows >= p and math.isqrt(rows - p) ** 2 == rows - p]
    return squares[0] if squares else 1 + registers
