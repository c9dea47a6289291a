"""The official MAE dialect: encoder keys bare, decoder keys with a `decoder_` prefix."""

from torch import Tensor

from .architecture import architecture, heads_said
from .loaded import About, Loaded, State

_DECODER = (  # ours, official; longest first, since `decoder.pos_embed` must not meet the encoder's rule
    ("decoder.blocks.", "decoder_blocks."),
    ("decoder.embed.", "decoder_embed."),
    ("decoder.norm.", "decoder_norm."),
    ("decoder.pred.", "decoder_pred."),
    ("decoder.pos_embed", "decoder_pos_embed"),
    ("decoder.mask_token", "mask_token"),
)


def load(state: State, about: About) -> Loaded:
    """Read `mae_pretrain_vit_*.pth` (the encoder alone), `*_full.pth` and `mae_visualize_vit_*.pth`.

    The latter two differ in what they predict, normalized pixels or plain ones, and no tensor tells which:
    the saved settings do, where there are some.
    """
    every = from_official(state)
    beside = {name: value for name, value in every.items() if name.startswith("decoder.")}
    vit = {name.removeprefix("encoder."): value for name, value in every.items() if name not in beside}
    config, notes = architecture(vit, heads=about.heads, said=heads_said(about, vit), init="mae")
    looks = "an MAE encoder" + (" with its decoder" if beside else " alone, without a decoder")
    if beside and config.pos_embed != "sincos":
        notes = (*notes, "its positions are not MAE's fixed sin-cos ones, and are taken as they are")
    normed = bool(about.args["norm_pix_loss"]) if "norm_pix_loss" in about.args else None
    if normed is not None:
        notes = (*notes, f"it was trained on {'normalized' if normed else 'plain'} pixels")
    published = not beside or len(beside.get("decoder.embed.bias", ())) == 512
    if not published:
        notes = (*notes, "nothing tells the attention heads of its decoder")
    heads = 16 if published else 0
    return Loaded(looks, config, vit, beside, decoder_heads=heads, norm_pixels=normed, notes=notes)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of `mae_pretrain_vit_*_full.pth` to those of `methods.mae.MAE`."""
    return {_rename(name): value for name, value in state.items()}


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of `methods.mae.MAE` to the official ones; the inverse of `from_official`."""
    official = {}
    for name, value in state.items():
        for ours, theirs in _DECODER:
            if name.startswith(ours):
                official[theirs + name.removeprefix(ours)] = value
                break
        else:
            official[name.removeprefix("encoder.")] = value
    return official


def _rename(name: str) -> str:
    for ours, theirs in _DECODER:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return "encoder." + name
