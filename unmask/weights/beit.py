"""The official BEiT dialect, pre-training and fine-tuning: names, and the index buffers that it stores."""

import re

import torch
from torch import Tensor

from ..positions import relative_position_index
from .architecture import architecture, heads_said
from .loaded import HALF, IMAGENET, About, Loaded, State

_RULES = (  # ours, official
    ("ls1.gamma", "gamma_1"),
    ("ls2.gamma", "gamma_2"),
    ("attn.rel_pos_bias.", "attn."),
)
_TABLE, _INDEX = "relative_position_bias_table", "relative_position_index"
_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")


def load(state: State, about: About) -> Loaded:
    """Read `beit_*.pth`, pre-trained (with `lm_head`) or fine-tuned, or a state dict of timm's `Beit`.

    Input is normalized with 0.5, unless the saved settings say ImageNet's numbers (pre-training on IN-1k).
    """
    index = next((value for name, value in state.items() if name.endswith(_INDEX)), None)
    every = from_official(state, prefix="")
    grid = None if index is None else grid_of_index(index)
    beside = {name: value for name, value in every.items() if name.startswith("lm_head.")}
    vit = {name: value for name, value in every.items() if name not in beside}
    config, notes = architecture(vit, heads=about.heads, said=heads_said(about, vit), grid=grid, init="beit")
    mean, std = IMAGENET if about.args.get("imagenet_default_mean_and_std") else HALF
    kind = "pre-trained, with its lm_head" if beside else "fine-tuned" if config.classes else "without a head"
    return Loaded(f"a BEiT, {kind}", config, vit, beside, mean, std, notes=notes)


def from_official(state: dict[str, Tensor], prefix: str = "vit.") -> dict[str, Tensor]:
    """Rename the keys of a `beit_*.pth` (under `model`) to those of `methods.beit.BEiT`.

    The index buffers are checked against ours and left out: they follow from the grid.

    Args:
        state: official name -> tensor.
        prefix: in front of the backbone's names; "" for a bare ViT. `lm_head` never has it.
    Raises:
        ValueError: an index buffer is not what its size says.
    """
    ours = {}
    for name, value in state.items():
        if name.rpartition(".")[2] == _INDEX:
            check_index(name, value)
            continue
        ours[name if name.startswith("lm_head.") else prefix + _rename(name, official=True)] = value
    return ours


def to_official(state: dict[str, Tensor], grid: tuple[int, int] | None, prefix: str = "vit.") -> dict[str, Tensor]:
    """Rename the keys of `methods.beit.BEiT` to the official ones; the tokenizer is left out.

    Args:
        state: our name -> tensor.
        grid: (gh, gw), which the index buffers follow from; None leaves them out (timm).
        prefix: as for `from_official`.
    """
    official = {}
    for name, value in state.items():
        if not name.startswith((prefix, "lm_head.")) or name.startswith("tokenizer."):
            continue
        theirs = name if name.startswith("lm_head.") else _rename(name.removeprefix(prefix), official=False)
        official[theirs] = value
        if theirs.endswith(_TABLE) and grid is not None:
            official[theirs.removesuffix(_TABLE) + _INDEX] = relative_position_index(grid)
    return official


def grid_of_index(index: Tensor) -> tuple[int, int]:
    """Tell the patch grid from an index buffer: along a row of patches the index falls by one a step.

    A column of patches is taken for a row, whose index is the same.
    """
    patches = len(index) - 1
    first = index[1, 1:].tolist()
    width = next((j for j in range(1, patches) if first[j] != first[0] - j), patches)
    return patches // width, width


def check_index(name: str, index: Tensor) -> None:
    """Compare an index buffer with ours.

    Raises:
        ValueError: it is not what its size says.
    """
    if index.ndim != 2 or min(index.shape) < 2:
        raise ValueError(f"{name} is {tuple(index.shape)}, no relative position index; the file is damaged")
    grid = grid_of_index(index)
    ours = relative_position_index(grid)
    if ours.shape != index.shape or not torch.equal(ours, index.to(ours.dtype)):
        raise ValueError(f"{name} is no relative position index of a {grid[0]}x{grid[1]} grid; the file is damaged")


def _rename(name: str, *, official: bool) -> str:
    block = _BLOCK.fullmatch(name)
    if block is None:
        return name
    inner = block[2]
    for ours, theirs in _RULES:
        if official and inner == theirs:
            inner = ours
        elif official and theirs == "attn." and inner == theirs + _TABLE:
            inner = ours + _TABLE
        elif not official and inner.startswith(ours):
            inner = theirs + inner.removeprefix(ours)
    return block[1] + inner
