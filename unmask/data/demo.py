"""Real images that arrive with a PyPI package: crops of eighteen photographs in scikit-image's wheel.

The task: which photograph is a 32-px crop from? Training crops come from the left parts of the
photographs and test crops from the right parts, which no training crop touches; so a model must know
the texture and the color of a scene, not its pixels. No network is used: the files are in the wheel.
"""

from functools import lru_cache
from importlib import resources
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..randomness import key
from .record import Record

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "cell": "cell.png",
    "clock": "clock_motion.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "text": "text.png",
}
"""class -> file in skimage/data; the classes in sorted order"""

SIZE = 32
"""side of a crop, in pixels"""
WINDOWS = (48, 96)
"""side of the square that is shrunk to a crop, in pixels of the photograph"""
COUNT = {"train": 420, "test": 100}
"""crops of each photograph"""
CUT, GAP = 0.68, 8
"""the training part ends at this fraction of the width; so many pixels follow that neither part has"""
FLAT = 3.0
"""a window whose gray levels have a smaller standard deviation (empty sky) is drawn again"""


class Demo:
    """The demonstration data: 18 classes, 7,560 training or 1,800 test crops, 32 x 32 RGB.

    Args:
        part: "train" or "test".
    Raises:
        ValueError: this installation of scikit-image does not hold its photographs.
    """

    def __init__(self, part: Literal["train", "test"]):
        self.name, self.part = f"demo:{part}", part
        self.classes: list[str] | None = list(PHOTOGRAPHS)
        self.pixels = _crops(part)
        self.labels: np.ndarray | None = np.repeat(np.arange(len(PHOTOGRAPHS)), COUNT[part])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Record:
        label, place = divmod(i, COUNT[self.part])
        known = -1 if self.labels is None else label
        return Record(self.pixels[i], known, f"{self.part}/{list(PHOTOGRAPHS)[label]}-{place:04d}")


def photograph(name: str) -> Image.Image:
    """Open one of PHOTOGRAPHS as RGB."""
    file = resources.files("skimage") / "data" / PHOTOGRAPHS[name]
    if not file.is_file():
        raise ValueError(f"demo: {PHOTOGRAPHS[name]} is missing from scikit-image; pip install --force-reinstall it")
    with file.open("rb") as opened:
        return Image.open(opened).convert("RGB")


def part_of(photo: Image.Image, part: Literal["train", "test"]) -> Image.Image:
    """The left (train) or right (test) part of a photograph, cut before any resizing."""
    cut = round(photo.width * CUT)
    return photo.crop((0, 0, cut, photo.height) if part == "train" else (cut + GAP, 0, photo.width, photo.height))


@lru_cache(maxsize=2)
def _crops(part: Literal["train", "test"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Draw every crop of a part: half from each window size, at places named by the photograph."""
    crops = []
    for name in PHOTOGRAPHS:
        photo = part_of(photograph(name), part)
        rng = key(0, "demo", part, name)
        for i in range(COUNT[part]):
            side = WINDOWS[i % len(WINDOWS)]
            while True:
                left, top = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
                window = photo.crop((left, top, left + side, top + side))
                if np.asarray(window.convert("L")).std() >= FLAT:
                    break
            crops.append(np.asarray(window.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return np.stack(crops)
