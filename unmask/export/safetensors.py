"""Our own form, which `unmask.load` reads back to the bit; and a tokenizer under its original's names."""

from pathlib import Path

from safetensors.torch import save_file

from ..methods.codec import Codec
from ..tokenizers import FILE as TOKENIZER
from ..tokenizers import save
from ..weights import dalle
from ..weights import unmask as ours
from ..weights.loaded import Loaded
from .subject import Written, tensors


def write(weights: Loaded, folder: Path) -> Written:
    """Write model.safetensors: the ViT and what comes beside it, architecture and input in the header."""
    ours.write(weights, folder)
    loading = (
        "import unmask\n\n"
        'vit = unmask.load("FOLDER")  # the same bits\n'
        "tokens = vit(images)  # prefix [B 1+R D], patches [B N D]"
    )
    names = f"`{ours.FILE}` has timm's parameter names and needs no unmask: safetensors.torch.load_file reads it."
    return Written(loading, (names, f"Its header, `{ours.KEY}`, is JSON: the architecture and the input."))


def write_tokenizer(codec: Codec, folder: Path) -> Written:
    """Write a discrete VAE under its original's names, and as one file that this package reads.

    DALL-E's are two modules, encoder and decoder, whose parameters are called `w` and `b`; BEiT's
    `DiscreteVAE` has the names that ours has.
    """
    state = tensors(codec)
    if codec.config.kind == "dalle":
        for part, official in zip(("encoder", "decoder"), dalle.to_official(state), strict=True):
            save_file(official, folder / f"{part}.safetensors", metadata={"format": "pt"})
        names = "`encoder.safetensors` and `decoder.safetensors` have the names of OpenAI's DALL-E modules."
        loading = 'encoder, decoder = (load_file(f"FOLDER/{part}.safetensors") for part in ("encoder", "decoder"))'
    else:
        save_file(state, folder / "discrete_vae.safetensors", metadata={"format": "pt"})
        names = "`discrete_vae.safetensors` has the names of the DiscreteVAE that BEiT reads under `weights`."
        loading = 'state = load_file("FOLDER/discrete_vae.safetensors")'
    save(codec, folder / TOKENIZER)
    note = f"`{TOKENIZER}` is for `unmask pretrain beit DATA --tokenizer FOLDER`."
    return Written(f"from safetensors.torch import load_file\n\n{loading}", (names, note))
