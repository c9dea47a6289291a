"""Weights of any dialect by what is written on the command line: recognized, checked, never loaded in part.

1. the container is opened          files.py: safetensors, torch's pickles, npz
2. the tensors are found            under `model`, `state_dict`, ...; `module.`, `_orig_mod.` and `model.` taken off
3. the dialect is recognized        by names alone; each has a file here
4. the architecture is told         architecture.py
5. every tensor has its place       or what lacks and what is foreign is listed
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import beit, hf, ibot, jax, mae, timm, unmask
from .architecture import check, check_sides
from .files import Contents, read
from .loaded import HALF, IMAGENET, About, Loaded, State
from .pickles import Settings

_WRAPPERS = ("model", "module", "state_dict", "teacher", "student", "model_ema")
"""entries that hold the tensors, the first that is there"""
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""what DDP, torch.compile and Lightning put before every name"""
_TASK = ("head.", "decode_head.", "auxiliary_head.", "neck.")
"""what stands beside `backbone.` in checkpoints of other tasks"""


def load(spec: str, heads: int | None = None, part: str = "") -> Loaded:
    """Read weights.

    Args:
        spec: a file or a folder, `timm:NAME`, `hf:FOLDER_OR_ID`.
        heads: attention heads, where the file does not tell them.
        part: `student` or `teacher` of a self-distillation checkpoint; empty: the teacher.
    Returns:
        all that the file has, in fp32; its notes are to be shown.
    Raises:
        ValueError: damaged, refused, unknown, or not whole; one line that says what it looks like.
        FileNotFoundError: nothing is there.
    """
    if spec.startswith("timm:"):
        loaded = timm.load_named(spec.removeprefix("timm:"))
    else:
        place = spec.removeprefix("hf:")
        contents = read(_downloaded(place) if spec.startswith("hf:") and not Path(place).exists() else place)
        try:
            loaded = recognize(contents, heads, part)
        except ValueError as error:
            raise ValueError(f"{spec}: {error}") from None
    if part and not loaded.beside.keys() & {"student.vit.cls_token", "teacher.vit.cls_token"}:
        raise ValueError(f"{spec} is {loaded.looks} and has no {part}; leave :{part} out")
    try:
        loaded = with_input(in_fp32(loaded))
        check(loaded.vit, loaded.state, loaded.looks)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from None
    return loaded


def recognize(contents: Contents, heads: int | None = None, part: str = "") -> Loaded:
    """Tell whose a file's tensors are, and read them.

    Raises:
        ValueError: nobody's, or a tokenizer's; lists what is there.
    """
    tree = contents.tree
    if unmask.KEY in contents.header:
        if part == "student":
            raise ValueError("the network of an export is the one that was exported; unmask export RUN:student has it")
        return unmask.from_file(tree, contents.header[unmask.KEY])
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not a dictionary of tensors")
    args = tree.get("args")
    about = About("", args.state if isinstance(args, Settings) else {}, contents.config, contents.processor, heads)
    if all(_is_state(tree.get(role)) for role in ("student", "teacher")):
        entries = {name: _tensors(value) for name, value in tree.items() if isinstance(value, dict)}
        entries |= {role: unprefixed(entries[role]) for role in ("student", "teacher")}
        return ibot.load(entries, about, part or "teacher")
    wrapper, state = unwrap(tree)
    _refuse_tokenizer(state, contents)
    state, notes = backbone_of(unprefixed(state))
    check_sides(state)
    loaded = _dialect(state, about)(state, about._replace(wrapper=wrapper))
    return replace(loaded, notes=(*notes, *loaded.notes))


def _dialect(state: State, about: About) -> Callable[[State, About], Loaded]:
    """The reader of these names; config.json of timm's own tells them from others that are the same."""
    if any(name.endswith("patch_embeddings.projection.weight") for name in state):
        return hf.load
    if "embedding/kernel" in state:
        return jax.load
    if "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state:
        if timm.is_folder(about.config):
            return timm.load
        if "masked_embed" in state:
            return ibot.load_vit
        if "lm_head.weight" in state or timm.is_beit(state):
            return ibot.load_vit if "blocks.0.attn.qkv.bias" in state else beit.load
        if any(name.startswith("decoder_blocks.") for name in state):
            return mae.load
        if "head.weight" in state or "fc_norm.weight" in state or "reg_token" in state:
            return timm.load
        return _headless
    raise ValueError(f"its names are of no dialect known here: {_some(state)}")


def _headless(state: State, about: About) -> Loaded:
    """An encoder by names that several programs share: MAE's has fixed positions, DINO's and iBOT's learned ones."""
    encoder = mae.load(state, about)
    if encoder.vit.pos_embed == "sincos":
        return encoder
    return ibot.load_vit(state, about)


def unwrap(tree: dict[str, Any]) -> tuple[str, State]:
    """Find the tensors in a checkpoint's dictionary: the entry's name (empty: none) and the tensors."""
    if _is_state(tree):
        return "", _tensors(tree)
    for name in _WRAPPERS:
        if _is_state(tree.get(name)):
            return name, _tensors(tree[name])
    if _is_state(tree.get("weights")):
        return "weights", _tensors(tree["weights"])
    raise ValueError(f"no tensors under {', '.join(_WRAPPERS)}; it has: {_some(tree)}")


def unprefixed(state: State) -> State:
    """Names without what DDP, torch.compile and Lightning put before them."""
    for _ in range(4):  # wrappers in wrappers
        for prefix in _PREFIXES:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name.replace("_orig_mod.", ""): value for name, value in state.items()}  # parts compiled one by one


def backbone_of(state: State) -> tuple[State, tuple[str, ...]]:
    """The backbone without the heads of another task, and what was left out."""
    backbone = {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}
    beside = [name for name in state if not name.startswith("backbone.")]
    if "patch_embed.proj.weight" not in backbone or not all(name.startswith(_TASK) for name in beside):
        return state, ()
    kinds = sorted({name.partition(".")[0] for name in beside})
    return backbone, (f"only backbone.* is read; left out: {', '.join(kinds)}",) if kinds else ()


def in_fp32(loaded: Loaded) -> Loaded:
    """Weights in single precision; says what they were."""
    kinds = {str(v.dtype).removeprefix("torch.") for v in loaded.state.values() if v.dtype != torch.float32}
    if not kinds:
        return loaded
    if any(not value.is_floating_point() for value in loaded.state.values()):
        raise ValueError(f"its weights are {', '.join(sorted(kinds))}: quantized weights cannot be loaded")
    state, beside = ({k: v.float() for k, v in part.items()} for part in (loaded.state, loaded.beside))
    note = f"weights are {', '.join(sorted(kinds))} in the file, and fp32 here"
    return replace(loaded, state=state, beside=beside, notes=(*loaded.notes, note))


def with_input(loaded: Loaded) -> Loaded:
    """Weights with as many means and deviations as channels, and as many names as classes.

    Images of other than three channels, of whose input the file says nothing, are taken to be normalized with 0.5.

    Raises:
        ValueError: the file says another number of them.
    """
    channels, classes = loaded.vit.channels, loaded.vit.classes
    if loaded.classes and len(loaded.classes) != classes:
        raise ValueError(f"{len(loaded.classes)} class names for a head of {classes}; correct config.json")
    if len(loaded.mean) == len(loaded.std) == channels:
        return loaded
    if (loaded.mean, loaded.std) in (IMAGENET, HALF):
        note = f"input of {channels} channels normalized with 0.5, as nothing tells its mean"
        return replace(loaded, mean=(0.5,) * channels, std=(0.5,) * channels, notes=(*loaded.notes, note))
    raise ValueError(
        f"input mean of {len(loaded.mean)} numbers and std of {len(loaded.std)} for {channels} channels; correct them "
        f"in its config"
    )


def describe(loaded: Loaded) -> list[str]:
    """What a person should know of weights that were read: what they are, and what was taken for granted."""
    vit = loaded.vit
    (h, w), (ph, pw) = vit.image_hw, vit.patch_hw
    numbers = [" ".join(f"{x:g}" for x in v) for v in (loaded.mean, loaded.std)]
    return [
        f"{loaded.looks}: width {vit.width}, depth {vit.depth}, {vit.heads} heads, {h}x{w} px in patches of {ph}x{pw}",
        f"input mean {numbers[0]}, std {numbers[1]}; LayerNorm eps {vit.norm_eps:g}, GELU {vit.gelu}",
        *loaded.notes,
    ]


def _downloaded(name: str) -> str:
    """The folder of a model on the hub: its configuration and weights, safetensors before pickles.

    Raises:
        ValueError: huggingface_hub is missing, or there is no such model.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"hf:{name} needs huggingface_hub: pip install 'unmask[hub]'") from None
    try:
        wanted = ["config.json", "preprocessor_config.json", "model*.safetensors*"]
        folder = snapshot_download(name, allow_patterns=wanted)
        if not any(Path(folder).glob("*.safetensors")):
            folder = snapshot_download(name, allow_patterns=[*wanted, "pytorch_model.bin"])
    except Exception as error:  # the hub's and the network's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"hf:{name} is no folder here and could not be fetched: {reason[0]}") from error
    return folder


def _refuse_tokenizer(state: State, contents: Contents) -> None:
    named = {"blocks.input.w", "codebook.weight"} & state.keys()
    if named or "unmask.codec" in contents.header:
        raise ValueError(
            "it looks like a tokenizer (a discrete VAE), not a ViT; pretrain beit takes it with --tokenizer, "
            "unmask show FILE tokens IMAGES draws it, unmask.tokenizers.load reads it"
        )


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())


def _tensors(entry: dict[str, Any]) -> State:
    return {str(name): value for name, value in entry.items() if isinstance(value, Tensor)}


def _some(names: Any) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "") if listed else "nothing"
