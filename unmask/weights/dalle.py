"""The official dialects of the discrete VAE: DALL-E's two modules, and BEiT's `DiscreteVAE`.

DALL-E's parameters are called `w` and `b`; its files are pickled modules, read by `pickles.py`. BEiT's
`DiscreteVAE`, in `pytorch_model.bin` under `weights`, has our names already.
"""

import re
from typing import Any

from torch import Tensor

_TO_OURS = (
    (re.compile(r"^blocks\.(input|output\.conv)\."), lambda m: m[1].partition(".")[0] + "."),
    (
        re.compile(r"^blocks\.group_(\d+)\.block_(\d+)\.res_path\.conv_(\d+)\."),
        lambda m: f"groups.{int(m[1]) - 1}.{int(m[2]) - 1}.convs.{int(m[3]) - 1}.",
    ),
    (
        re.compile(r"^blocks\.group_(\d+)\.block_(\d+)\.id_path\."),
        lambda m: f"groups.{int(m[1]) - 1}.{int(m[2]) - 1}.skip.",
    ),
)
_TO_THEIRS = (
    (
        re.compile(r"^(input|output)\."),
        lambda m: "blocks.input." if m[1] == "input" else "blocks.output.conv.",
    ),
    (
        re.compile(r"^groups\.(\d+)\.(\d+)\.convs\.(\d+)\."),
        lambda m: f"blocks.group_{int(m[1]) + 1}.block_{int(m[2]) + 1}.res_path.conv_{int(m[3]) + 1}.",
    ),
    (
        re.compile(r"^groups\.(\d+)\.(\d+)\.skip\."),
        lambda m: f"blocks.group_{int(m[1]) + 1}.block_{int(m[2]) + 1}.id_path.",
    ),
)
_LAST = {"w": "weight", "b": "bias"}


def from_official(encoder: dict[str, Tensor], decoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dicts of OpenAI's two modules to the one of `methods.codec_dalle.DalleCodec`.

    Raises:
        ValueError: a name is not of that dialect.
    """
    parts = {"encoder": encoder, "decoder": decoder}
    return {f"{part}.{_rename(k, _TO_OURS, _LAST)}": v for part, state in parts.items() for k, v in state.items()}


def to_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a `DalleCodec`'s state dict to those of OpenAI's encoder and decoder; undoes `from_official`."""
    last = {ours: theirs for theirs, ours in _LAST.items()}
    encoder, decoder = (
        {_rename(k.removeprefix(part), _TO_THEIRS, last): v for k, v in state.items() if k.startswith(part)}
        for part in ("encoder.", "decoder.")
    )
    return encoder, decoder


def _rename(name: str, rules: tuple[tuple[re.Pattern[str], Any], ...], last: dict[str, str]) -> str:
    stem, _, end = name.rpartition(".")
    for pattern, new in rules:
        if pattern.fullmatch(f"{stem}.") and end in last:
            return pattern.sub(new, f"{stem}.") + last[end]
    raise ValueError(f"{name!r} is no weight of DALL-E's encoder or decoder")


def sizes(encoder: dict[str, Tensor], decoder: dict[str, Tensor]) -> dict[str, Any]:
    """Tell the architecture from the official weights: the fields of a dalle `CodecConfig`.

    The stride has no weights; it is the original's, a pool after each group but the last.
    """
    try:
        first, last = encoder["blocks.input.w"], encoder["blocks.output.conv.w"]
        code_width = decoder["blocks.input.w"].shape[0]
    except KeyError as error:
        raise ValueError(f"these are no weights of DALL-E's encoder and decoder: {error} is missing") from None
    places = [re.match(r"blocks\.group_(\d+)\.block_(\d+)\.", name) for name in encoder]
    groups = max(int(m[1]) for m in places if m)
    return {
        "kind": "dalle",
        "vocab": last.shape[0],
        "stride": 2 ** (groups - 1),
        "channels": first.shape[1],
        "width": first.shape[0],
        "groups": groups,
        "blocks": max(int(m[2]) for m in places if m),
        "code_width": code_width,
    }


# --- BEiT's DiscreteVAE ------------------------------------------------------------------------------


def discrete_vae_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """Tell the architecture from a DiscreteVAE's weights: the fields of a beit `CodecConfig`.

    Raises:
        ValueError: they are not those of one.
    """
    try:
        vocab, code_width = state["codebook.weight"].shape
        width, channels = state["encoder.0.0.weight"].shape[:2]
    except KeyError as error:
        raise ValueError(f"these are no weights of BEiT's DiscreteVAE: {error} is missing") from None
    layers = max(int(name.split(".")[1]) for name in state if name.startswith("encoder.")) // 2
    return {
        "kind": "beit",
        "vocab": vocab,
        "stride": 2**layers,
        "channels": channels,
        "width": width,
        "code_width": code_width,
        "likelihood": "mse",
    }
