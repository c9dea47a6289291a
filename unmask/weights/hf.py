"""The dialect of Hugging Face transformers: ViT, ViTMAE and BEiT, both ways.

    ours                        theirs, after `vit.` or `beit.`
    cls_token, mask_token       embeddings.cls_token, embeddings.mask_token
    pos_embed                   embeddings.position_embeddings
    patch_embed.proj            embeddings.patch_embeddings.projection
    blocks.i.norm1, norm2       encoder.layer.i.layernorm_before, layernorm_after
    blocks.i.attn.qkv           encoder.layer.i.attention.attention.query, key, value: thirds of it
    blocks.i.attn.q_bias, v_bias  ... query.bias, value.bias; BEiT's keys have none
    blocks.i.attn.proj          encoder.layer.i.attention.output.dense
    blocks.i.mlp.fc1, fc2       encoder.layer.i.intermediate.dense, output.dense
    blocks.i.ls1, ls2.gamma     encoder.layer.i.lambda_1, lambda_2
    rel_pos_bias                encoder.relative_position_bias; in a block: attention.attention.relative_position_bias
    norm                        layernorm; of BEiT's pre-training without `beit.`
    fc_norm, head, lm_head      pooler.layernorm; classifier and lm_head without prefix
    decoder.blocks.j            decoder.decoder_layers.j, with the layer names above
    decoder.embed, ...          decoder.decoder_embed, ...; decoder.mask_token

Those are the names in files. transformers 5 has shorter ones in memory (`layers.i.attention.q_proj`) and
writes MAE's decoder as `decoder.decoder_encoder.layer.j`: both are read. A ViT's `pooler.dense`, which
the classifier does not use, is left out.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..positions import grid_of
from .architecture import architecture
from .beit import check_index
from .loaded import HALF, IMAGENET, About, Loaded, State

Kind = Literal["vit", "vit_mae", "beit"]
"""`model_type` in config.json"""

_LAYER = (  # ours, theirs; whole stems within a layer
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("attn.proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
    ("attn.rel_pos_bias", "attention.attention.relative_position_bias"),
)
_NEWER = (  # as in memory since transformers 5, as in files
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
    ("attention.q_proj.", "attention.attention.query."),
    ("attention.k_proj.", "attention.attention.key."),
    ("attention.v_proj.", "attention.attention.value."),
)
_TOP = (
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("rel_pos_bias.", "encoder.relative_position_bias."),
    ("fc_norm.", "pooler.layernorm."),
    ("norm.", "layernorm."),
)
_OUTSIDE = (  # never after `vit.` or `beit.`
    ("head.", "classifier."),
    ("lm_head.", "lm_head."),
    ("decoder.embed.", "decoder.decoder_embed."),
    ("decoder.norm.", "decoder.decoder_norm."),
    ("decoder.pred.", "decoder.decoder_pred."),
    ("decoder.pos_embed", "decoder.decoder_pos_embed"),
    ("decoder.mask_token", "decoder.mask_token"),
)
_GELU: dict[str, Any] = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
"""hidden_act in config.json, and ours"""
_INPUT = {"vit": HALF, "vit_mae": IMAGENET, "beit": HALF}
"""mean and deviation that transformers normalizes with where the folder does not say"""
OWN = "unmask"
"""of config.json: what our exports say and transformers has no place for, {mean, std, range, classes}"""
_OURS = re.compile(r"(decoder\.)?blocks\.(\d+)\.(.+)")
_THEIRS = re.compile(r"(encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)")


def load(state: State, about: About) -> Loaded:
    """Read a folder's tensors with its config.json, and preprocessor_config.json where there is one.

    Raises:
        ValueError: the config is of another model, or says what ours cannot do.
    """
    config = about.config
    kind = config.get("model_type", _kind(state))
    if kind not in _INPUT:
        raise ValueError(f"config.json is of a {kind!r}; of transformers vit, vit_mae and beit can be loaded")
    every = from_hf(state)
    beside = {name: value for name, value in every.items() if name.startswith(("decoder.", "lm_head."))}
    vit = {name: value for name, value in every.items() if name not in beside}
    notes = [] if config else ["no config.json: epsilon 1e-12 and GELU, as transformers' defaults are"]
    act = str(config.get("hidden_act", "gelu"))
    if act not in _GELU:
        raise ValueError(f"config.json says hidden_act {act}; {', '.join(_GELU)} can be loaded")
    grid = None
    if "image_size" in config and "patch_size" in config:
        size, patch = (tuple(v) if isinstance(v := config[n], list) else (v, v) for n in ("image_size", "patch_size"))
        grid = grid_of(size, patch)
    model, taken = architecture(
        vit,
        heads=about.heads,
        said=config.get("num_attention_heads"),
        grid=grid,
        norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        gelu=_GELU[act],
        init="mae" if kind == "vit_mae" else "beit" if kind == "beit" else "timm",
    )
    mean, std, said = _input(about.processor, kind)
    limits, own = None, config.get(OWN)
    if isinstance(own, dict):
        try:
            mean, std = (tuple(map(float, own[name])) for name in ("mean", "std"))
            limits = None if own.get("range") is None else (float(own["range"][0]), float(own["range"][1]))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"config.json's {OWN} is damaged ({why}); export it again") from None
        said = []
    return Loaded(
        f"transformers' {kind}", model, vit, beside, mean, std, limits,
        int(config.get("decoder_num_attention_heads", 16)), _classes(config, model.classes),
        norm_pixels=config.get("norm_pix_loss"), notes=(*notes, *taken, *said),
    )  # fmt: skip


def _classes(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of the head's outputs by our own entry or by id2label; transformers' LABEL_0, LABEL_1, ... are none."""
    own, labels = config.get(OWN), config.get("id2label")
    if count and isinstance(own, dict) and own.get("classes"):
        return tuple(map(str, own["classes"]))
    if not count or not isinstance(labels, dict) or {str(i) for i in range(count)} != {str(i) for i in labels}:
        return ()
    names = tuple(str(name) for _, name in sorted(labels.items(), key=lambda item: int(item[0])))
    return () if names == tuple(f"LABEL_{i}" for i in range(count)) else names


def _kind(state: State) -> str:
    """The model without a config.json."""
    if any(name.startswith("decoder.") for name in state):
        return "vit_mae"
    return "beit" if any("lambda_1" in name or "relative_position" in name for name in state) else "vit"


def _input(processor: Mapping[str, Any], kind: str) -> tuple[tuple[float, ...], tuple[float, ...], list[str]]:
    """Mean and deviation by the processor's file, or by transformers' own defaults."""
    if not processor:
        mean, std = _INPUT[kind]
        return mean, std, [f"no preprocessor_config.json: input as transformers normalizes it for {kind}"]
    if not processor.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3, []
    mean, std = (processor.get(f"image_{n}", usual) for n, usual in zip(("mean", "std"), _INPUT[kind], strict=True))
    return tuple(map(float, mean)), tuple(map(float, std)), []


def from_hf(state: State) -> State:
    """Rename a transformers state dict: names of `vit.ViT`, and `decoder.*` (MAE) or `lm_head.*` (BEiT) beside.

    Index buffers, which follow from the grid, are checked and left out, and so is a ViT's pooler.

    Raises:
        ValueError: a name is not of this dialect, lists such names; an index buffer is damaged.
    """
    ours: State = {}
    split: dict[str, dict[str, Tensor]] = {}  # our stem -> theirs -> tensor
    unknown = []
    for name, value in state.items():
        plain = _plain(name)
        if plain.endswith("relative_position_index"):
            check_index(name, value)
            continue
        if plain.startswith("pooler.dense."):
            continue
        layer = _THEIRS.fullmatch(plain)
        if layer is None:
            new = _swap(plain, _OUTSIDE + _TOP, ours=False)
            if new is None:
                unknown.append(name)
            else:
                ours[new] = value
            continue
        block = f"{'decoder.' if layer[1].startswith('decoder') else ''}blocks.{layer[2]}."
        inner = layer[3]
        third = re.fullmatch(r"attention\.attention\.((?:query|key|value)\.(?:weight|bias))", inner)
        if third:
            split.setdefault(block, {})[third[1]] = value
        elif inner in ("lambda_1", "lambda_2"):
            ours[f"{block}ls{inner[-1]}.gamma"] = value
        else:
            stem, dot, end = inner.rpartition(".")
            new = {theirs: mine for mine, theirs in _LAYER}.get(stem)
            if new is None:
                unknown.append(name)
            else:
                ours[block + new + dot + end] = value
    for block, parts in split.items():
        try:
            ours |= _join(block, parts)
        except KeyError as error:
            raise ValueError(f"{block}attention has no {error.args[0]}; the file is not whole") from None
    if unknown:
        raise ValueError(f"not names of transformers' ViT, ViTMAE or BEiT: {', '.join(unknown[:5])}")
    return ours


def to_hf(state: State, kind: Kind) -> State:
    """Rename ours to the names in files of transformers 4 and 5; the inverse of `from_hf`.

    Args:
        state: names of `vit.ViT`, with `decoder.*` (vit_mae) or `lm_head.*` (beit) beside.
        kind: what the file shall be; it decides the prefix.
    Raises:
        ValueError: this kind has no such parameter.
    """
    prefix = "beit." if kind == "beit" else "vit."
    theirs: State = {}
    for name, value in state.items():
        _check(name, kind)
        block = _OURS.fullmatch(name)
        if block is None:
            outside = _swap(name, _OUTSIDE, ours=True)
            if outside is not None:
                theirs[outside] = value
                continue
            top = _swap(name, _TOP, ours=True)
            if top is None:
                raise ValueError(f"transformers has no name for {name}")
            bare = kind == "beit" and name.startswith("norm.") and "lm_head.weight" in state
            theirs[top if bare else prefix + top] = value
            continue
        layer = f"decoder.decoder_layers.{block[2]}." if block[1] else f"{prefix}encoder.layer.{block[2]}."
        inner = block[3]
        if inner in ("attn.qkv.weight", "attn.qkv.bias"):
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[f"{layer}attention.attention.{part}.{inner.rpartition('.')[2]}"] = third.clone()
        elif inner in ("attn.q_bias", "attn.v_bias"):
            theirs[f"{layer}attention.attention.{'query' if 'q_' in inner else 'value'}.bias"] = value
        elif inner in ("ls1.gamma", "ls2.gamma"):
            theirs[f"{layer}lambda_{inner[2]}"] = value
        else:
            stem, dot, end = inner.rpartition(".")
            new = dict(_LAYER).get(stem)
            if new is None:
                raise ValueError(f"transformers has no name for {name}")
            theirs[layer + new + dot + end] = value
    return theirs


def _check(name: str, kind: Kind) -> None:
    """Refuse what the kind's module does not have, before a file is written that nobody can load."""
    only_beit = ("q_bias", "v_bias", "relative_position_bias_table", "gamma")
    if kind != "beit" and name.endswith(only_beit):
        raise ValueError(f"transformers' {kind} has no {name}; only beit has layer scale and relative positions")
    if kind == "beit" and name.endswith("qkv.bias"):
        raise ValueError(f"transformers' beit has no bias of keys, and {name} has one")
    if name.startswith("decoder.") and kind != "vit_mae":
        raise ValueError(f"transformers' {kind} has no decoder, and {name} is of one")
    if name.startswith("reg_token"):
        raise ValueError("transformers' ViT, ViTMAE and BEiT have no registers")


def _plain(name: str) -> str:
    """A name as in files, without `vit.` or `beit.`."""
    name = re.sub(r"^(vit|beit)\.", "", name)
    name = re.sub(r"^layers\.(\d+)\.", r"encoder.layer.\1.", name)
    name = name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers.")
    name = re.sub(r"^shared_position_bias\.", "encoder.relative_position_bias.", name)
    for newer, older in _NEWER:
        name = name.replace(newer, older)
    return re.sub(
        r"^(encoder\.layer\.\d+\.)relative_position_bias\.", r"\1attention.attention.relative_position_bias.", name
    )


def _swap(name: str, rules: tuple[tuple[str, str], ...], *, ours: bool) -> str | None:
    for mine, theirs in rules:
        old, new = (mine, theirs) if ours else (theirs, mine)
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name.removeprefix(old)
    return None


def _join(block: str, parts: dict[str, Tensor]) -> State:
    """Queries, keys and values in one matrix; biases in one vector, or two where keys have none (BEiT)."""
    joined = {f"{block}attn.qkv.weight": torch.cat([parts[f"{p}.weight"] for p in ("query", "key", "value")])}
    if "key.bias" in parts:
        joined[f"{block}attn.qkv.bias"] = torch.cat([parts[f"{p}.bias"] for p in ("query", "key", "value")])
    elif "query.bias" in parts:
        joined |= {f"{block}attn.q_bias": parts["query.bias"], f"{block}attn.v_bias": parts["value.bias"]}
    return joined
