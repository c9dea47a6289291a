"""preprocessor_config.json: our evaluation crop, in the words of transformers' image processors."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ..views import margin
from ..weights.exported import Preparation

FILE = "preprocessor_config.json"


class Processed(NamedTuple):
    """Whether the file was written; true when it was."""

    reason: str
    """why it was not; empty: it was"""

    def __bool__(self) -> bool:
        return not self.reason


def write_processor(preparation: Preparation, folder: Path) -> Processed:
    """Write the file, where a processor can do what we do.

    BitImageProcessor is the one that scales the short side, bicubic, cuts the center and normalizes. It
    knows neither crops that are no square nor other images than RGB.
    """
    h, w = preparation.size
    if h != w:
        return Processed(f"its processors scale to a short side, which does not fit a {h}x{w} crop")
    if preparation.channels != 3:
        return Processed(f"its processors read RGB images, this network {preparation.channels} channels")
    (folder / FILE).write_text(json.dumps(processor(preparation), indent=1) + "\n", encoding="utf-8")
    return Processed("")


def processor(preparation: Preparation) -> dict[str, Any]:
    """The content of the file, for a square crop of RGB images."""
    side = preparation.size[0]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(margin(preparation.size) * side)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preparation.mean),
        "image_std": list(preparation.std),
    }
