"""Which part of an image a random crop shows."""

import math

import numpy as np

from .randomness import between


def random_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw torchvision's RandomResizedCrop box: ten tries, then the central box of nearest ratio.

    Args:
        size: of the image, (height, width) in pixels.
        scale: least and largest share of the image's area.
        ratio: least and largest width over height.
        rng: what draws.
    Returns:
        top, left, height, width in pixels, inside the image.
    """
    height, width = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * between(*scale, rng)
        aspect = math.exp(between(low, high, rng))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = min(width, max(1, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w
