"""A ViT's weights in another ViT: other image sizes, channels, positions, biases; never other widths.

What can be carried over exactly is: layer scale into the layers before it or as gammas of 1, biases of
queries and values without the keys' (a key's bias cancels in the softmax), a shared relative table into
every block. What cannot is made freshly, and every such thing is said.
"""

import torch
from torch import Tensor

from ..positions import resize_pos_embed, resize_relative, sincos_2d
from ..vit import ViTConfig
from .loaded import Loaded, State

_TABLE = "rel_pos_bias.relative_position_bias_table"


def fit(loaded: Loaded, target: ViTConfig) -> tuple[State, list[str]]:
    """Weights for a ViT of another configuration.

    Args:
        loaded: what a file has.
        target: where it shall go; width, depth, heads, patch and MLP must be the same.
    Returns:
        name -> tensor of the target's shapes; what lacks is to be fresh. And what was changed, in words.
    Raises:
        ValueError: they differ in what cannot be carried over; names both sides.
    """
    source = loaded.vit
    same = ("width", "depth", "heads", "patch_hw", "mlp_ratio")
    differing = [
        f"{n} {getattr(source, n)} there and {getattr(target, n)} here"
        for n in same
        if _of(source, n) != _of(target, n)
    ]
    if differing:
        raise ValueError(f"{loaded.looks} is of another size: {', '.join(differing)}; give --method.vit.* its values")
    state = dict(loaded.state)
    kept = [(name, getattr(source, name), getattr(target, name)) for name in ("norm_eps", "gelu")]
    notes = [f"{name} was {there} and is {here}" for name, there, here in kept if there != here]
    for convert in (_channels, _positions, _relative, _biases, _scale, _ends):
        convert(state, source, target, notes)
    return state, notes


def fit_patches(weight: Tensor, channels: int) -> Tensor:
    """A patch embedding for images of other channels; timm's rule.

    To one channel: the sum, so that a gray image is seen as its three equal channels were. To more or
    others: the channels in turn, times old / new, so that the responses keep their size.

    Args:
        weight: [D C ph pw].
        channels: wanted.
    """
    have = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [i % have for i in range(channels)]] * (have / channels)


def _channels(state: State, source: ViTConfig, target: ViTConfig, notes: list[str]) -> None:
    if source.channels != target.channels:
        name = "patch_embed.proj.weight"
        state[name] = fit_patches(state[name], target.channels)
        how = "summed" if target.channels == 1 else f"repeated, times {source.channels}/{target.channels}"
        notes.append(f"{source.channels} input channels became {target.channels}: filters {how}")


def _positions(state: State, source: ViTConfig, target: ViTConfig, notes: list[str]) -> None:
    pos = state.pop("pos_embed", None)
    if target.pos_embed == "none":
        if pos is not None:
            notes.append("its absolute positions are left out: there are none here")
    elif pos is None:
        notes.append(f"it has no absolute positions: {_fresh(target.pos_embed)}")
    elif target.pos_embed == "sincos":
        if source.pos_embed != "sincos":
            notes.append("its learned positions are left out: those here are fixed")
        elif source.grid == target.grid:
            state["pos_embed"] = pos
    elif source.pos_embed == "sincos" and source.grid != target.grid:
        state["pos_embed"] = torch.from_numpy(sincos_2d(target.width, target.grid, prefix=1)).to(pos)[None]
        notes.append(f"sin-cos positions computed for {_by(target.grid)}, and trained from here on")
    else:
        state["pos_embed"] = resize_pos_embed(pos, source.grid, target.grid, source.pos_resize)
        if source.grid != target.grid:
            notes.append(f"positions resized from {_by(source.grid)} to {_by(target.grid)} ({source.pos_resize})")


def _relative(state: State, source: ViTConfig, target: ViTConfig, notes: list[str]) -> None:
    tables = {name: state.pop(name) for name in [n for n in state if n.endswith(_TABLE)]}
    if target.rel_pos == "none":
        if tables:
            notes.append("its relative positions are left out: there are none here")
        return
    if not tables or (target.rel_pos == "shared" and source.rel_pos != "shared"):
        notes.append("relative positions: freshly made, as it has none that fit")
        return
    if source.grid != target.grid:
        tables = {name: resize_relative(table, source.grid, target.grid) for name, table in tables.items()}
        notes.append(f"relative positions resized from {_by(source.grid)} to {_by(target.grid)} (geometric)")
    if target.rel_pos == "per-block" and source.rel_pos == "shared":
        tables = {f"blocks.{i}.attn.{_TABLE}": tables[_TABLE].clone() for i in range(target.depth)}
        notes.append("its shared relative table was copied into every block")
    state |= tables


def _biases(state: State, source: ViTConfig, target: ViTConfig, notes: list[str]) -> None:
    if source.qkv_bias == target.qkv_bias:
        return
    for i in range(source.depth):
        at, zeros = f"blocks.{i}.attn.", torch.zeros(source.width)
        full = state.pop(f"{at}qkv.bias", torch.cat([zeros] * 3))
        q, _, v = full.chunk(3)
        q, v = state.pop(f"{at}q_bias", q), state.pop(f"{at}v_bias", v)
        if target.qkv_bias == "full":
            state[f"{at}qkv.bias"] = torch.cat([q, zeros, v])
        elif target.qkv_bias == "qv":
            state |= {f"{at}q_bias": q.clone(), f"{at}v_bias": v.clone()}
    if target.qkv_bias == "none":
        notes.append("its biases of queries and values are left out: there are none here")


def _scale(state: State, source: ViTConfig, target: ViTConfig, notes: list[str]) -> None:
    """Gammas of 1, or gammas multiplied into the layers before them: the same function."""
    if (source.layer_scale is None) == (target.layer_scale is None):
        return
    for i in range(source.depth):
        for gamma, layer in ((f"blocks.{i}.ls1.gamma", "attn.proj"), (f"blocks.{i}.ls2.gamma", "mlp.fc2")):
            if source.layer_scale is None:
                state[gamma] = torch.ones(source.width)
                continue
            factor, stem = state.pop(gamma), f"blocks.{i}.{layer}"
            state[f"{stem}.weight"] = state[f"{stem}.weight"] * factor[:, None]
            state[f"{stem}.bias"] = state[f"{stem}.bias"] * factor
    notes.append("layer scale: gammas of 1" if source.layer_scale is None else "layer scale multiplied into the layers")


def _ends(state: State, source: ViTConfig, target: ViTConfig, notes: list[str]) -> None:
    """Tokens before the patches and what comes after the blocks."""
    if target.mask_token and not source.mask_token:
        notes.append("mask token: freshly made")
    elif not target.mask_token:
        state.pop("mask_token", None)
    if source.registers != target.registers:
        state.pop("reg_token", None)
        notes.append(f"{source.registers} registers became {target.registers}: freshly made")
    last = "fc_norm" if target.normalizes_after_pooling else "norm"
    if target.classes and target.head_norm == "none":
        last = ""
    for norm in ("norm", "fc_norm"):
        used = norm == last
        if used and f"{norm}.weight" not in state:
            notes.append(f"{norm}: freshly made")
        elif not used:
            for end in ("weight", "bias"):
                state.pop(f"{norm}.{end}", None)
    if source.classes and source.classes != target.classes:
        del state["head.weight"], state["head.bias"]
        notes.append(f"its head of {source.classes} classes is left out")
    if target.classes and source.classes != target.classes:
        notes.append(f"head of {target.classes} classes: freshly made")


def _of(config: ViTConfig, name: str) -> object:
    return int(config.width * config.mlp_ratio) if name == "mlp_ratio" else getattr(config, name)


def _fresh(kind: str) -> str:
    return "computed (sin-cos)" if kind == "sincos" else "freshly made"


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"
