"""Our own dialect: a folder with the backbone's tensors and one JSON file that says all the rest.

backbone.safetensors   the state of `vit.ViT`, names and bits as they are
unmask.json            {"unmask": version, "vit": ViTConfig, "preparation": Preparation, "classes": names or null}
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..config import from_json, to_json
from ..vit import ViT, ViTConfig

WEIGHTS, DESCRIPTION = "backbone.safetensors", "unmask.json"


class Preparation(NamedTuple):
    """How an image becomes the network's input."""

    size: tuple[int, int]
    """(h, w) of the center crop, in pixels"""
    mean: tuple[float, ...]
    """subtracted from images in [0, 1], one number a channel"""
    std: tuple[float, ...]
    """then divided by this"""
    channels: int = 3
    value_range: tuple[float, float] | None = None
    """for 16-bit and float images, what becomes 0 and 255"""


class Exported(NamedTuple):
    """What such a folder holds."""

    vit: ViT
    preparation: Preparation
    classes: tuple[str, ...] | None
    """names of the head's outputs, in their order"""


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's state as files want it: on the CPU, contiguous, no two names for the same memory."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}


def write(folder: Path, exported: Exported) -> None:
    """Write both files into an existing folder."""
    from .. import __version__

    save_file(tensors(exported.vit), folder / WEIGHTS, metadata={"format": "pt"})
    content = {
        "unmask": __version__,
        "vit": to_json(exported.vit.config),
        "preparation": exported.preparation._asdict(),
        "classes": exported.classes,
    }
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(folder: str | Path) -> Exported:
    """Read what `write` wrote: the network on the CPU, in evaluation mode, equal to the bit.

    Raises:
        ValueError: a file is missing or damaged, or the tensors are not those of the described network.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        config, given, classes = from_json(content["vit"], ViTConfig), content["preparation"], content["classes"]
        preparation = Preparation(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {Path(error.filename).name}; export it again") from None
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged ({type(error).__name__}: {error}); export it again") from None
    if not isinstance(config, ViTConfig):
        raise ValueError(f"{folder / DESCRIPTION} describes a {type(config).__name__}, not a ViT; export it again")
    with torch.device("meta"):
        skeleton = ViT(config)
    wanted = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != found:  # before anything is built: a description may ask for any amount of memory
        differing = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        raise ValueError(f"{folder / WEIGHTS} is not the network of {DESCRIPTION}: {', '.join(differing[:3])} differ")
    vit = ViT(config)
    vit.load_state_dict(state)
    return Exported(vit.eval(), preparation, None if classes is None else tuple(classes))
