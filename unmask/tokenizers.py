"""Tokenizers: images to ids and back, and their files.

What BEiT predicts. A tokenizer is anything with this protocol; those of this package are frozen codecs:
our own discrete VAE's averaged weights, OpenAI's DALL-E weights, and BEiT's `DiscreteVAE`. Files are
read as tensors and text only; nothing in them is executed.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import from_json, to_json
from .methods.codec import Codec, CodecConfig, build_codec
from .nearest import beside
from .weights import dalle, files

FILE = "tokenizer.safetensors"
"""what a run folder calls its tokenizer"""


@runtime_checkable
class Tokenizer(Protocol):
    """What BEiT asks of a tokenizer; to train with, it is an nn.Module too."""

    vocab: int
    """ids there are, K; DALL-E 8192"""
    stride: int
    """pixels of a cell's side; DALL-E 8"""
    channels: int
    """image channels"""

    def encode(self, image: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """Ids of images in [0, 1], in raster order; outside autocast, without a gradient."""
        ...

    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] from the ids of a (gh, gw) grid."""
        ...


def freeze(codec: Codec) -> Codec:
    """Copy a codec as a tokenizer: on the CPU, in eval mode, without gradients."""
    return copy.deepcopy(codec).cpu().requires_grad_(False).eval()


def fingerprint(module: nn.Module) -> str:
    """Name a module's weights: 16 hex digits of the SHA-256 of its state dict, names sorted."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save(codec: Codec, path: str | Path) -> str:
    """Write a tokenizer to one safetensors file, its architecture in the header.

    Args:
        codec: what to keep; its weights are written in fp32.
        path: the file, or a folder that gets `tokenizer.safetensors`.
    Returns:
        the weights' fingerprint.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    name = fingerprint(codec)
    header = {"unmask.codec": json.dumps(to_json(codec.config)), "unmask.fingerprint": name}
    state = {k: v.detach().cpu().contiguous() for k, v in codec.state_dict().items()}
    partial = file.with_name(f".{file.name}.tmp")
    save_file(state, partial, metadata=header)
    partial.rename(file)
    return name


def load(path: str | Path) -> Codec:
    """Read a tokenizer, frozen.

    Args:
        path: a file that `save` wrote; OpenAI's `encoder.pkl` or `decoder.pkl`, the other beside it, or
            the same tensors in safetensors; BEiT's `pytorch_model.bin`; or a folder
            with one of these. What a file is is told by its content.
    Raises:
        ValueError: there is no tokenizer there, or the file holds anything but one.
    """
    given = Path(path)
    file = given
    if given.is_dir():
        names = (FILE, f"tokenizer/{FILE}", "encoder.pkl", "encoder.safetensors", "pytorch_model.bin")
        file = next((given / name for name in names if (given / name).exists()), given)
    if not file.is_file():
        near = beside(given)
        hint = f"did you mean {near}? If not, " if near and not given.exists() else ""
        raise ValueError(
            f"no tokenizer at {given}: {hint}give a finished dvae run, {FILE}, OpenAI's encoder.pkl with decoder.pkl "
            f"beside it, or BEiT's pytorch_model.bin"
        )
    contents = files.read(file)
    if "unmask.codec" in contents.header:
        return _ours(file, contents)
    tree = contents.tree
    if isinstance(tree, dict) and isinstance(tree.get("weights"), dict):  # BEiT's
        tree = tree["weights"]
    if "codebook.weight" in tree:
        return from_state(CodecConfig(**dalle.discrete_vae_sizes(tree)), tree)
    if "encoder.blocks.input.w" in tree:  # both of DALL-E's modules in one file
        pair = [{n.removeprefix(p): v for n, v in tree.items() if n.startswith(p)} for p in ("encoder.", "decoder.")]
    elif "blocks.input.w" in tree:
        both = [file.with_name(f"{part}{file.suffix}") for part in ("encoder", "decoder")]
        if not all(part.is_file() for part in both):
            raise ValueError(
                f"{file}: DALL-E's tokenizer is two files, {both[0].name} and {both[1].name}, side by side"
            )
        pair = [files.read(part).tree for part in both]
    else:
        inside = ", ".join([str(name) for name in tree][:4]) or "nothing"
        raise ValueError(
            f"{file} is no tokenizer that tells its architecture ({inside} inside); tokenizers.save writes one"
        )
    return from_state(CodecConfig(**dalle.sizes(*pair)), dalle.from_official(*pair))


def from_state(config: CodecConfig, state: dict[str, Tensor]) -> Codec:
    """Build a frozen codec around weights.

    Raises:
        ValueError: names or shapes are not those of this architecture.
    """
    with torch.device("meta"):
        codec = build_codec(config)
    try:
        codec.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"these weights are no {config.kind} tokenizer: {error}") from None
    return codec.requires_grad_(False).eval()


def _ours(file: Path, contents: files.Contents) -> Codec:
    config = from_json(json.loads(contents.header["unmask.codec"]))
    if not isinstance(config, CodecConfig):
        raise ValueError(f"{file} describes a {type(config).__name__}, not a codec; write it with tokenizers.save")
    codec = from_state(config, contents.tree)
    if fingerprint(codec) != contents.header.get("unmask.fingerprint"):
        raise ValueError(f"{file}: the weights do not have their fingerprint; the file is damaged, copy it again")
    return codec
