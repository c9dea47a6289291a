"""Our own form, which `unmask.load` reads back to the bit; and a tokenizer in its original's names."""

from pathlib import Path

from safetensors.torch import save_file

from ..methods.codec import Codec
from ..tokenizers import FILE as TOKENIZER
from ..tokenizers import save
from ..weights import dalle
from ..weights.exported import DESCRIPTION, WEIGHTS, Exported, tensors
from ..weights.exported import write as write_exported
from .subject import Subject, Written


def write(subject: Subject, folder: Path) -> Written:
    """Write backbone.safetensors and unmask.json."""
    assert subject.vit is not None
    write_exported(folder, Exported(subject.vit, subject.preparation, subject.classes))
    loading = (
        "import unmask\n\n"
        'vit = unmask.load("FOLDER")  # the same bits\n'
        "tokens = vit(images)  # prefix [B 1+R D], patches [B N D]"
    )
    note = f"`{WEIGHTS}` has timm's parameter names and needs no unmask: safetensors.torch.load_file reads it."
    return Written(loading, (note, f"`{DESCRIPTION}` says the architecture and how images are prepared."))


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
        official = '{"encoder": load_file("FOLDER/encoder.safetensors"), "decoder": load_file("FOLDER/decoder.safetensors")}'
    else:
        save_file(state, folder / "discrete_vae.safetensors", metadata={"format": "pt"})
        names = "`discrete_vae.safetensors` has the names of the DiscreteVAE that BEiT reads under `weights`."
        official = 'load_file("FOLDER/discrete_vae.safetensors")'
    save(codec, folder / TOKENIZER)
    loading = f"from safetensors.torch import load_file\n\nstate = {official}"
    return Written(loading, (names, f"`{TOKENIZER}` is for `unmask pretrain beit DATA --tokenizer FOLDER`."))
