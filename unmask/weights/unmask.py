"""Our own exports: one safetensors file whose header says the architecture and the input.

model.safetensors
  tensors    the names of `vit.ViT`, and what comes beside it (`decoder.*`, `lm_head.*`, ...)
  header     unmask.model: JSON {looks, vit, mean, std, range, decoder_heads, classes, norm_pixels,
             frame}
"""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..config import from_json, to_json
from ..framing import PLAIN, Frame
from ..vit import ViTConfig
from .loaded import Loaded, State

FILE = "model.safetensors"
"""what an export folder calls its weights"""
KEY = "unmask.model"
"""of the header's entry"""
_BESIDE = ("decoder.", "lm_head.", "student.", "teacher.", "center", "patch_center")
_FIELDS = ("looks", "mean", "std", "range", "decoder_heads", "classes", "norm_pixels", "frame")


def write(loaded: Loaded, folder: Path) -> Path:
    """Write `model.safetensors` into a folder that exists; the same tensors give the same bytes.

    Returns:
        the file.
    """
    about = {name: getattr(loaded, name) for name in _FIELDS} | {"vit": to_json(loaded.vit)}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in to_file(loaded).items()}
    partial = folder / f".{FILE}.tmp"
    save_file(tensors, partial, metadata={KEY: json.dumps(about, sort_keys=True)})
    return partial.rename(folder / FILE)


def to_file(loaded: Loaded) -> State:
    """The tensors of a file: the ViT's and those beside it."""
    return loaded.state | loaded.beside


def from_file(state: State, header: str) -> Loaded:
    """Put together what a file holds; the inverse of `to_file`.

    Raises:
        ValueError: the header is not one that `write` makes.
    """
    try:
        about = json.loads(header)
        vit = from_json(about["vit"])
        assert isinstance(vit, ViTConfig)
        mean, std = tuple(map(float, about["mean"])), tuple(map(float, about["std"]))
        limits = None if about["range"] is None else (float(about["range"][0]), float(about["range"][1]))
        looks, heads, classes = (
            str(about["looks"]),
            int(about["decoder_heads"]),
            tuple(map(str, about.get("classes", ()))),
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its header {KEY} is damaged ({type(error).__name__}: {error}); export it again") from None
    ours = {name: value for name, value in state.items() if not name.startswith(_BESIDE)}
    beside: dict[str, Tensor] = {name: value for name, value in state.items() if name.startswith(_BESIDE)}
    normed, frame = about.get("norm_pixels"), Frame(*about.get("frame", PLAIN))
    return Loaded(looks, vit, ours, beside, mean, std, limits, heads, classes, normed, frame)
