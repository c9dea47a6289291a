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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import from_json, to_json
from .methods.codec import Codec, CodecConfig, build_codec
from .weights import dalle
from .weights.pickles import read_module

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
        path: a file that `save` wrote; OpenAI's `encoder.pkl` or `decoder.pkl`, the other beside it;
            BEiT's `pytorch_model.bin`; or a folder with one of these.
    Raises:
        ValueError: there is no tokenizer there, or the file holds anything but one.
    """
    given = Path(path)
    file = given
    if given.is_dir():
        names = (FILE, f"tokenizer/{FILE}", "encoder.pkl", "pytorch_model.bin")
        file = next((given / name for name in names if (given / name).exists()), given)
    if not file.is_file():
        raise ValueError(
            f"no tokenizer at {given}: give a finished dvae run, {FILE}, OpenAI's encoder.pkl with decoder.pkl "
            f"beside it, or BEiT's pytorch_model.bin"
        )
    if file.suffix == ".safetensors":
        return _load_ours(file)
    if file.suffix == ".pkl":
        pair = [read_module(file.with_name(f"{part}.pkl")) for part in ("encoder", "decoder")]
        return from_state(CodecConfig(**dalle.sizes(*pair)), dalle.from_official(*pair))
    state = dalle.read_discrete_vae(file)
    return from_state(CodecConfig(**dalle.discrete_vae_sizes(state)), state)


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


def _load_ours(file: Path) -> Codec:
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}); write it anew with tokenizers.save") from None
    if "unmask.codec" not in header:
        raise ValueError(f"{file} does not say its architecture; write it with tokenizers.save")
    config = from_json(json.loads(header["unmask.codec"]))
    if not isinstance(config, CodecConfig):
        raise ValueError(f"{file} describes a {type(config).__name__}, not a codec; write it with tokenizers.save")
    codec = from_state(config, state)
    if fingerprint(codec) != header.get("unmask.fingerprint"):
        raise ValueError(f"{file}: the weights do not have their fingerprint; the file is damaged, copy it again")
    return codec
