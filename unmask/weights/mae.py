"""The official MAE dialect: encoder keys bare, decoder keys with a `decoder_` prefix."""

from torch import Tensor

_DECODER = (  # ours, official; longest first, since `decoder.pos_embed` must not meet the encoder's rule
    ("decoder.blocks.", "decoder_blocks."),
    ("decoder.embed.", "decoder_embed."),
    ("decoder.norm.", "decoder_norm."),
    ("decoder.pred.", "decoder_pred."),
    ("decoder.pos_embed", "decoder_pos_embed"),
    ("decoder.mask_token", "mask_token"),
)


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
