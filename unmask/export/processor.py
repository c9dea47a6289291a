"""preprocessor_config.json: our evaluation crop, in the words of transformers' image processors."""

import json
from pathlib import Path
from typing import Any

from ..framing import margin
from ..weights.loaded import Loaded

FILE = "preprocessor_config.json"


def write_processor(weights: Loaded, folder: Path) -> str:
    """Write the file, where a processor can do what we do.

    BitImageProcessor is the one that scales the short side, bicubic, cuts the center and normalizes. It
    knows neither crops that are no square nor other images than RGB.

    Returns:
        why it was not written; empty: it was.
    """
    (h, w), channels = weights.vit.image_hw, weights.vit.channels
    if h != w:
        return f"transformers' processors scale to a short side, which does not fit a {h} x {w} crop"
    if channels != 3:
        return f"transformers' processors read RGB images, this network {channels} channels"
    (folder / FILE).write_text(json.dumps(processor(weights), indent=1) + "\n", encoding="utf-8")
    return ""


def processor(weights: Loaded) -> dict[str, Any]:
    """The content of the file, for a square crop of RGB images."""
    side = weights.vit.image_hw[0]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(margin((side, side), weights.frame) * side)},
        "resample": {"bilinear": 2, "bicubic": 3}[weights.frame.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(weights.mean),
        "image_std": list(weights.std),
    }
