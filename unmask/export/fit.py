"""Ways to say the same network in another program's parameters; each changes names or zeros, never a feature."""

import torch
from torch import Tensor

from ..vit import ViTConfig

State = dict[str, Tensor]


def check_head(config: ViTConfig) -> None:
    """Refuse a head whose final norm is where timm and transformers have none: that of a linear probe.

    Raises:
        ValueError: the head is on the mean of normalized patches, or on features without a norm.
    """
    before = config.pool == "mean" and config.head_norm == "before"
    if config.classes and (before or config.head_norm == "none"):
        has = "the final norm before the mean of the patches" if before else "no final norm"
        raise ValueError(
            f"its head has {has}, as linear probes have; timm and transformers normalize what the head reads: use "
            f"--format safetensors, onnx or torch"
        )


def with_key_bias(state: State, config: ViTConfig) -> State:
    """Give every block one bias of queries, keys and values: zeros where there was none."""
    made = {name: value for name, value in state.items() if not name.endswith((".q_bias", ".v_bias"))}
    for block in _attentions(config):
        if config.qkv_bias == "none":
            made[f"{block}.qkv.bias"] = state[f"{block}.qkv.weight"].new_zeros(3 * config.width)
        elif config.qkv_bias == "qv":
            q, v = state[f"{block}.q_bias"], state[f"{block}.v_bias"]
            made[f"{block}.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return made


def without_key_bias(state: State, config: ViTConfig) -> State:
    """Give every block a bias of queries and one of values.

    A bias of the keys is left out: it adds the same number to all logits of a query, which the softmax
    takes away again.
    """
    made = {name: value for name, value in state.items() if not name.endswith(".qkv.bias")}
    for block in _attentions(config):
        if config.qkv_bias == "none":
            q = v = state[f"{block}.qkv.weight"].new_zeros(config.width)
        elif config.qkv_bias == "full":
            q, _, v = state[f"{block}.qkv.bias"].chunk(3)
        else:
            continue
        made |= {f"{block}.q_bias": q.clone(), f"{block}.v_bias": v.clone()}
    return made


def with_positions(state: State, config: ViTConfig) -> State:
    """Give a network without absolute positions a table of zeros."""
    if config.pos_embed != "none":
        return state
    gh, gw = config.grid
    return state | {"pos_embed": state["cls_token"].new_zeros(1, 1 + gh * gw, config.width)}


def without_mask_token(state: State) -> State:
    """Leave out the embedding of hidden patches: only training needs it."""
    return {name: value for name, value in state.items() if name != "mask_token"}


def one_or_two(size: tuple[int, int]) -> int | list[int]:
    """A size as JSON configurations have it: one number for a square."""
    return size[0] if size[0] == size[1] else list(size)


def _attentions(config: ViTConfig) -> list[str]:
    return [f"blocks.{i}.attn" for i in range(config.depth)]
