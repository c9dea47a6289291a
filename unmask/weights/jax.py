"""The dialect of the original Vision Transformer (google-research/vision_transformer): `.npz` of JAX arrays.

    embedding/kernel [ph pw C D]                     patch_embed.proj.weight [D C ph pw]
    cls                                              cls_token
    Transformer/posembed_input/pos_embedding         pos_embed
    Transformer/encoderblock_i/LayerNorm_0, _2       blocks.i.norm1, norm2; scale is weight
      MultiHeadDotProductAttention_1/query, ...      blocks.i.attn.qkv; kernel [D H D/H], bias [H D/H]
      MultiHeadDotProductAttention_1/out             blocks.i.attn.proj; kernel [H D/H D]
      MlpBlock_3/Dense_0, Dense_1                    blocks.i.mlp.fc1, fc2; kernels are transposed
    Transformer/encoder_norm, head                   norm, head

Its GELU is the tanh approximation. `pre_logits`, a layer between class token and head in pre-training on
ImageNet-21k, has no place in ours: it is left out, with the head that reads it. The original resizes
positions bilinearly; ours bicubically.
"""

import re

import torch
from torch import Tensor

from .architecture import architecture
from .loaded import HALF, About, Loaded, State

_TOP = {  # ours, theirs
    "cls_token": "cls",
    "pos_embed": "Transformer/posembed_input/pos_embedding",
    "patch_embed.proj.bias": "embedding/bias",
    "norm.weight": "Transformer/encoder_norm/scale",
    "norm.bias": "Transformer/encoder_norm/bias",
    "head.bias": "head/bias",
}
_BLOCK = {
    "norm1.weight": "LayerNorm_0/scale",
    "norm1.bias": "LayerNorm_0/bias",
    "norm2.weight": "LayerNorm_2/scale",
    "norm2.bias": "LayerNorm_2/bias",
    "attn.proj.bias": "MultiHeadDotProductAttention_1/out/bias",
    "mlp.fc1.bias": "MlpBlock_3/Dense_0/bias",
    "mlp.fc2.bias": "MlpBlock_3/Dense_1/bias",
}
_TURNED = {"mlp.fc1.weight": "MlpBlock_3/Dense_0/kernel", "mlp.fc2.weight": "MlpBlock_3/Dense_1/kernel"}
_ATTENTION = "MultiHeadDotProductAttention_1"
_THIRDS = ("query", "key", "value")
_NAME = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")


def load(state: State, about: About) -> Loaded:
    """Read an `.npz`; the heads are a side of its kernels."""
    notes = ("GELU by tanh, as in JAX",)
    if any(name.startswith("pre_logits/") for name in state):
        state = {name: value for name, value in state.items() if not name.startswith(("pre_logits/", "head/"))}
        notes = (*notes, "pre_logits and the head behind it are left out")
    query = state.get(f"Transformer/encoderblock_0/{_ATTENTION}/query/kernel")
    vit = from_jax(state)
    config, taken = architecture(
        vit, heads=about.heads, said=None if query is None else query.shape[1], gelu="tanh", init="jax"
    )
    return Loaded("a Vision Transformer of JAX", config, vit, mean=HALF[0], std=HALF[1], notes=(*notes, *taken))


def from_jax(state: State) -> State:
    """Rename and turn the arrays of an `.npz` to the parameters of `vit.ViT`.

    Raises:
        ValueError: a name is not of this dialect; lists such names.
    """
    ours: State = {}
    top, inner = ({theirs: mine for mine, theirs in table.items()} for table in (_TOP, _BLOCK | _TURNED))
    thirds: dict[str, dict[str, Tensor]] = {}
    unknown = []
    _check_sides(state)
    for name, value in state.items():
        block = _NAME.fullmatch(name)
        if name == "embedding/kernel":
            ours["patch_embed.proj.weight"] = value.permute(3, 2, 0, 1).contiguous()
        elif name == "head/kernel":
            ours["head.weight"] = value.t().contiguous()
        elif name in top:
            ours[top[name]] = value
        elif block is None:
            unknown.append(name)
        else:
            stem = f"blocks.{block[1]}."
            if block[2] == f"{_ATTENTION}/out/kernel":
                ours[f"{stem}attn.proj.weight"] = value.flatten(0, 1).t().contiguous()
            elif block[2] in inner:
                mine = inner[block[2]]
                ours[stem + mine] = value.t().contiguous() if mine in _TURNED else value
            elif block[2].startswith(_ATTENTION):
                part, kind = block[2].split("/")[1:]
                thirds.setdefault(stem, {})[f"{part}/{kind}"] = value
            else:
                unknown.append(name)
    if unknown:
        raise ValueError(f"not names of JAX's Vision Transformer: {', '.join(unknown[:5])}")
    for stem, parts in thirds.items():
        lacks = [f"{p}/{kind}" for p in _THIRDS for kind in ("kernel", "bias") if f"{p}/{kind}" not in parts]
        if lacks:
            raise ValueError(f"{stem}attn has no {', '.join(lacks)}; the file is not whole")
        kernels, biases = ([parts[f"{p}/{kind}"] for p in _THIRDS] for kind in ("kernel", "bias"))
        ours[f"{stem}attn.qkv.weight"] = torch.cat([kernel.flatten(1).t() for kernel in kernels])
        ours[f"{stem}attn.qkv.bias"] = torch.cat([bias.flatten() for bias in biases])
    return ours


def _check_sides(state: State) -> None:
    """Refuse kernels that could not be turned."""
    for name, value in state.items():
        stem, _, kind = name.rpartition("/")
        part = stem.rpartition("/")[2]
        if kind == "kernel":
            sides = 4 if part == "embedding" else 3 if part in (*_THIRDS, "out") else 2
        else:
            sides = 2 if part in _THIRDS else value.ndim
        if value.ndim != sides:
            raise ValueError(f"{name} is {tuple(value.shape)}, and {sides} sides are wanted; the file is damaged")


def to_jax(state: State, heads: int) -> State:
    """Rename and turn the parameters of `vit.ViT` to the arrays of an `.npz`; the inverse of `from_jax`."""
    theirs: State = {}
    for name, value in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if name == "patch_embed.proj.weight":
            theirs["embedding/kernel"] = value.permute(2, 3, 1, 0).contiguous()
        elif name == "head.weight":
            theirs["head/kernel"] = value.t().contiguous()
        elif name in _TOP:
            theirs[_TOP[name]] = value
        elif block is None:
            raise ValueError(f"JAX's Vision Transformer has no name for {name}")
        else:
            stem, inner = f"Transformer/encoderblock_{block[1]}/", block[2]
            if inner == "attn.proj.weight":
                theirs[f"{stem}{_ATTENTION}/out/kernel"] = value.t().unflatten(0, (heads, -1)).contiguous()
            elif inner in _BLOCK:
                theirs[stem + _BLOCK[inner]] = value
            elif inner in _TURNED:
                theirs[stem + _TURNED[inner]] = value.t().contiguous()
            elif inner in ("attn.qkv.weight", "attn.qkv.bias"):
                for part, third in zip(_THIRDS, value.chunk(3), strict=True):
                    turned = third.t() if third.ndim == 2 else third
                    kind = "kernel" if third.ndim == 2 else "bias"
                    theirs[f"{stem}{_ATTENTION}/{part}/{kind}"] = turned.unflatten(-1, (heads, -1)).contiguous()
            else:
                raise ValueError(f"JAX's Vision Transformer has no name for {name}")
    return theirs
