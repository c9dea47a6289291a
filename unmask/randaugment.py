"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as DeiT, MAE, BEiT and iBOT fine-tune with it.

That is timm's variant `rand-m9-mstd0.5-inc1`: two operations of fifteen, drawn with replacement, each carried
out by a chance of one half, with a magnitude drawn about 9 of 10, and every operation the stronger the larger
the magnitude. torchvision's RandAugment differs: 14 operations without Invert and SolarizeAdd but with
Identity, always carried out, magnitudes in 31 fixed bins, and draws from torch's global generator, which
could not be named. So the draws are ours (`draw`), and Pillow renders them (`apply`), as timm has it do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Operation = tuple[str, float]
"""what is done to an image, and how much of it, in the operation's own unit"""


@dataclass(frozen=True)
class RandAugment:
    """The policy; defaults: `rand-m9-mstd0.5-inc1`."""

    operations: int = 2
    """drawn for an image, with replacement"""
    magnitude: float = 9.0
    """mean strength, of 10"""
    spread: float = 0.5
    """standard deviation of the strength, which is cut to 0 ... 10"""
    p: float = 0.5
    """chance that a drawn operation is carried out"""
    fill: tuple[int, ...] = (124, 116, 104)
    """level of each channel that shows where a turned or shifted image ends; the mean, ImageNet's"""


def draw(policy: RandAugment, rng: np.random.Generator) -> tuple[Operation, ...]:
    """Draw the operations of one image; touch no pixel."""
    names = tuple(_AMOUNTS)
    drawn = []
    for _ in range(policy.operations):
        name = names[rng.integers(len(names))]
        if rng.random() < policy.p:
            strength = min(max(rng.normal(policy.magnitude, policy.spread), 0.0), 10.0) / 10
            drawn.append((name, float(_AMOUNTS[name](strength, 1.0 if rng.random() < 0.5 else -1.0))))
    return tuple(drawn)


def apply(
    image: UInt8[Tensor, "C h w"], operations: tuple[Operation, ...], fill: tuple[int, ...]
) -> UInt8[Tensor, "C h w"]:
    """Carry out what was drawn, by Pillow, bicubic; other than three channels are treated one by one."""
    if not operations:
        return image
    pixels = image.permute(1, 2, 0).numpy()
    bands = [pixels] if pixels.shape[2] == 3 else list(np.moveaxis(pixels, 2, 0))
    done = []
    for i, band in enumerate(bands):
        picture = Image.fromarray(np.ascontiguousarray(band))
        color = fill if len(bands) == 1 and len(fill) == 3 and band.ndim == 3 else fill[i % len(fill)]
        for name, amount in operations:
            picture = _RENDER[name](picture, amount, color)
        done.append(np.array(picture))
    return torch.from_numpy(np.dstack(done)).permute(2, 0, 1)


def _enhance(strength: float, sign: float) -> float:
    return max(0.1, 1.0 + sign * strength * 0.9)


def _nothing(strength: float, sign: float) -> float:
    return 0.0


_AMOUNTS: dict[str, Callable[[float, float], float]] = {
    "autocontrast": _nothing,
    "equalize": _nothing,
    "invert": _nothing,
    "rotate": lambda strength, sign: sign * strength * 30,  # degrees
    "posterize": lambda strength, sign: max(1, 4 - int(strength * 4)),  # bits that stay; timm's 0 is black
    "solarize": lambda strength, sign: 256 - int(strength * 256),  # level from which it inverts
    "solarize_add": lambda strength, sign: min(128, int(strength * 110)),  # added to levels below 128
    "saturation": _enhance,
    "contrast": _enhance,
    "brightness": _enhance,
    "sharpness": _enhance,
    "shear_x": lambda strength, sign: sign * strength * 0.3,
    "shear_y": lambda strength, sign: sign * strength * 0.3,
    "translate_x": lambda strength, sign: sign * strength * 0.45,  # part of the width
    "translate_y": lambda strength, sign: sign * strength * 0.45,
}
"""(strength in [0, 1], sign) -> amount; the names are the fifteen operations"""


def _affine(picture: Image.Image, matrix: tuple[float, ...], fill: int | tuple[int, ...]) -> Image.Image:
    how = Image.Transform.AFFINE
    return picture.transform(picture.size, how, matrix, resample=Image.Resampling.BICUBIC, fillcolor=fill)


def _solarize_add(picture: Image.Image, amount: float) -> Image.Image:
    table = [min(255, level + int(amount)) if level < 128 else level for level in range(256)]
    return picture.point(table * len(picture.getbands()))


_RENDER: dict[str, Callable[[Image.Image, float, int | tuple[int, ...]], Image.Image]] = {
    "autocontrast": lambda picture, _, fill: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _, fill: ImageOps.equalize(picture),
    "invert": lambda picture, _, fill: ImageOps.invert(picture),
    "rotate": lambda picture, degrees, fill: picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=fill),
    "posterize": lambda picture, bits, fill: ImageOps.posterize(picture, int(bits)),
    "solarize": lambda picture, level, fill: ImageOps.solarize(picture, int(level)),
    "solarize_add": lambda picture, amount, fill: _solarize_add(picture, amount),
    "saturation": lambda picture, factor, fill: ImageEnhance.Color(picture).enhance(factor),
    "contrast": lambda picture, factor, fill: ImageEnhance.Contrast(picture).enhance(factor),
    "brightness": lambda picture, factor, fill: ImageEnhance.Brightness(picture).enhance(factor),
    "sharpness": lambda picture, factor, fill: ImageEnhance.Sharpness(picture).enhance(factor),
    "shear_x": lambda picture, shear, fill: _affine(picture, (1, shear, 0, 0, 1, 0), fill),
    "shear_y": lambda picture, shear, fill: _affine(picture, (1, 0, 0, shear, 1, 0), fill),
    "translate_x": lambda picture, part, fill: _affine(picture, (1, 0, part * picture.width, 0, 1, 0), fill),
    "translate_y": lambda picture, part, fill: _affine(picture, (1, 0, 0, 0, 1, part * picture.height), fill),
}
