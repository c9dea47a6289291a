"""Layer-wise learning rates for fine-tuning: the nearer a layer is to the pixels, the slower it learns."""

import re
from collections.abc import Iterable

from torch import nn

from .methods.base import Group, decay_groups

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_EMBEDDINGS = ("cls_token", "reg_token", "mask_token", "pos_embed")


def layer_id(name: str, depth: int) -> int:
    """Number a ViT's parameter by layer: embeddings 0, block i is i + 1, the rest depth + 1.

    The rule of MAE, BEiT and iBOT. A block's own relative table and gammas belong to the block; a shared
    table, final norms and heads are last.

    Example:
        >>> [layer_id(name, 12) for name in ("patch_embed.proj.weight", "blocks.11.ls1.gamma", "head.bias")]
        [0, 12, 13]
    """
    if name in _EMBEDDINGS or name.startswith("patch_embed."):
        return 0
    block = _BLOCK.match(name)
    return int(block[1]) + 1 if block else depth + 1


def layer_decay_groups(
    vit: nn.Module, depth: int, decay: float, skip: Iterable[str] = ("pos_embed", "cls_token")
) -> list[Group]:
    """Split a ViT's trainable parameters by layer and by weight decay.

    Args:
        vit: names as timm's, `blocks.i` inside.
        depth: blocks.
        decay: lr of layer i is scaled by decay ** (depth + 1 - i); ViT-B 0.65, L 0.75.
        skip: last parts of names that get no weight decay.
    Returns:
        groups from the embeddings up, the undecayed one of a layer first; none is empty.
    """
    groups: dict[tuple[int, bool], Group] = {}
    for part in decay_groups(vit, skip):
        for name, parameter in zip(part.names, part.parameters, strict=True):
            layer = layer_id(name, depth)
            new = Group([], [], part.decay, decay ** (depth + 1 - layer))
            group = groups.setdefault((layer, part.decay), new)
            group.names.append(name)
            group.parameters.append(parameter)
    return [groups[place] for place in sorted(groups)]
