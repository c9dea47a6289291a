"""Random erasing (Zhong et al. 2017, arXiv:1708.04896), timm's: a box of noise over a normalized image."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

AREA = (0.02, 1 / 3)
"""part of the image, uniform"""
ASPECT = (0.3, 1 / 0.3)
"""height / width, log-uniform"""


class Erased(NamedTuple):
    """A box of noise."""

    box: tuple[int, int, int, int]
    """top, left, height, width in the crop"""
    seed: int
    """names the noise"""


def draw_erased(shape: tuple[int, int], rng: np.random.Generator) -> Erased | None:
    """Draw the box (timm's RandomErasing: ten tries, count 1); None where no try fits."""
    height, width = shape
    for _ in range(10):
        area = rng.uniform(*AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return Erased((top, left, h, w), int(rng.integers(1 << 62)))
    return None


def erase(images: Float[Tensor, "B C h w"], erased: tuple[tuple[int, Erased], ...]) -> None:
    """Fill boxes with N(0, 1) noise, pixel by pixel (timm's mode `pixel`), in place.

    Args:
        images: normalized, so that noise has their mean and deviation.
        erased: (row, box) pairs.
    """
    generator = torch.Generator(images.device)
    for row, ((top, left, h, w), seed) in erased:
        generator.manual_seed(seed)
        noise = torch.randn(images.shape[1], h, w, generator=generator, device=images.device)
        images[row, :, top : top + h, left : left + w] = noise
