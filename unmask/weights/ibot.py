"""The official iBOT and DINO dialect: `backbone.*` and `head.*`, a student under `module.` (DDP).

    masked_embed (1, D)                     mask_token (1, 1, D)
    blocks.i.gamma_1, gamma_2               blocks.i.ls1.gamma, ls2.gamma
    head.last_layer.weight_g, weight_v      last_layer.parametrizations.weight.original0, original1
    head.last_layer2.*                      patch_layer.*; a copy of last_layer.* when the head is shared
    center (1, K), center2 (1, 1, K)        center (K), patch_center (K)

A DINO checkpoint is the same without masked_embed, last_layer2 and center2.
"""

from dataclasses import replace

from .architecture import architecture, heads_said
from .loaded import About, Loaded, State

_PARTS = (  # ours, official: pieces of names
    ("head.patch_layer.", "head.last_layer2."),
    (".parametrizations.weight.original0", ".weight_g"),
    (".parametrizations.weight.original1", ".weight_v"),
    (".ls1.gamma", ".gamma_1"),
    (".ls2.gamma", ".gamma_2"),
)
_CENTERS = {"center": "center", "patch_center": "center2"}


def load(checkpoint: dict[str, State], about: About, part: str = "teacher") -> Loaded:
    """Read `checkpoint.pth` of a training: student, teacher and centers.

    Args:
        checkpoint: its entries `student`, `teacher`, and `ibot_loss` or `dino_loss`.
        about: what is known beside.
        part: whose ViT is meant, the other comes beside it.
    """
    every = from_official(checkpoint)
    vit = _under(every, f"{part}.vit.")
    loaded = load_vit(vit_to_official(vit), about)
    kind = "an iBOT" if "student.vit.mask_token" in every else "a DINO"
    return replace(loaded, looks=f"{kind} training checkpoint, its {part}", beside=every)


def load_vit(state: State, about: About) -> Loaded:
    """Read a backbone: `checkpoint_teacher.pth`, `dino_*_pretrain.pth`, or one from a training checkpoint."""
    vit = vit_from_official(state)
    config, notes = architecture(vit, heads=about.heads, said=heads_said(about, vit), pos_resize="factor")
    return Loaded("an iBOT or DINO backbone", config, vit, notes=notes)


def vit_from_official(state: State) -> State:
    """Rename plain backbone keys (released `checkpoint_teacher.pth`, `dino_*_pretrain.pth`) to those of `vit.ViT`."""
    renamed = {_ours(name): value for name, value in state.items()}
    if "masked_embed" in renamed:
        renamed["mask_token"] = renamed.pop("masked_embed").unsqueeze(0)
    return renamed


def vit_to_official(state: State) -> State:
    """Rename the keys of `vit.ViT` to the official backbone's; the inverse of `vit_from_official`."""
    renamed = {_theirs(name): value for name, value in state.items()}
    if "mask_token" in renamed:
        renamed["masked_embed"] = renamed.pop("mask_token").squeeze(0)
    return renamed


def from_official(checkpoint: dict[str, State]) -> State:
    """Rename the entries `student`, `teacher` and `ibot_loss` of `checkpoint.pth` to the state of `methods.ibot.IBOT`.

    Args:
        checkpoint: `student` and `teacher` with or without `module.`; `ibot_loss` (DINO: `dino_loss`) may
            lack, and centers are left out then.
    Raises:
        ValueError: a key belongs neither to a backbone nor to a head.
    """
    state: State = {}
    for role in ("student", "teacher"):
        plain = {name.removeprefix("module."): value for name, value in checkpoint[role].items()}
        shared = _is_shared(plain)
        for name, value in plain.items():
            part, _, rest = name.partition(".")
            if part == "backbone":
                renamed = vit_from_official({rest: value})
                state |= {f"{role}.vit.{ours}": tensor for ours, tensor in renamed.items()}
            elif part != "head":
                raise ValueError(f"{role} key {name!r} is neither backbone.* nor head.*; is this an iBOT checkpoint?")
            elif not (shared and rest.startswith("last_layer2.")):
                state[f"{role}.{_ours(name)}"] = value
    loss = checkpoint.get("ibot_loss", checkpoint.get("dino_loss", {}))
    state |= {ours: loss[theirs].flatten() for ours, theirs in _CENTERS.items() if theirs in loss}
    return state


def to_official(state: State) -> dict[str, State]:
    """Rename the state of `methods.ibot.IBOT` to the official entries; the inverse of `from_official`.

    Returns:
        `student` (`module.backbone.*`, `module.head.*`), `teacher` (no `module.`), `ibot_loss`. A shared
        head lists its last layer twice, as the original does.
    """
    checkpoint: dict[str, State] = {"student": {}, "teacher": {}, "ibot_loss": {}}
    for role, prefix in (("student", "module."), ("teacher", "")):
        official = checkpoint[role]
        for name, value in _under(state, f"{role}.vit.").items():
            official |= {f"{prefix}backbone.{k}": v for k, v in vit_to_official({name: value}).items()}
        head = {_theirs(f"head.{name}"): value for name, value in _under(state, f"{role}.head.").items()}
        if not any(name.startswith("head.last_layer2.") for name in head):
            head |= {n.replace("last_layer.", "last_layer2."): v for n, v in head.items() if "last_layer." in n}
        official |= {prefix + name: value for name, value in head.items()}
    for ours, theirs in _CENTERS.items():
        if ours in state:
            shape = (1, -1) if ours == "center" else (1, 1, -1)
            checkpoint["ibot_loss"][theirs] = state[ours].reshape(shape)
    return checkpoint


def _is_shared(plain: State) -> bool:
    """Whether last_layer2 is last_layer, or lacks (DINO): the dict does not say, equal tensors do."""
    pairs = [(plain.get(f"head.last_layer.{p}"), plain.get(f"head.last_layer2.{p}")) for p in ("weight_g", "weight_v")]
    return all(b is None or (a is not None and a.shape == b.shape and bool((a == b).all())) for a, b in pairs)


def _under(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _ours(name: str) -> str:
    for ours, theirs in _PARTS:
        name = name.replace(theirs, ours)
    return name


def _theirs(name: str) -> str:
    for ours, theirs in _PARTS:
        name = name.replace(ours, theirs)
    return name
