"""Color jitter, gray, blur and solarize of a batch on its device, as Pillow does them to one image.

Levels are floats that hold whole numbers from 0 to 255: each operation ends where Pillow stores a byte,
so the result follows Pillow's to a level or two through any chain of operations. Source: Pillow's
Blend.c, Convert.c (L24, rgb2hsv, hsv2rgb), BoxBlur.c, and torchvision's `_functional_pil.py`.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

OPERATIONS = ("brightness", "contrast", "saturation", "hue", "gray", "blur", "solarize")
_NEED_RGB = {"saturation", "hue", "gray"}
_CACHE_VALUES = 1 << 18
"""numbers that a CPU works on at a time: 1 MiB stays in its cache (3 times faster than a whole batch)"""


def photometry(
    images: Float[Tensor, "B C h w"],
    factors: Float32[np.ndarray, "B 6"],
    steps: tuple[int, ...],
    rows: tuple[Int64[np.ndarray, "_"], ...],
) -> Float[Tensor, "B C h w"]:
    """Apply each step to its rows, in order; see views.PlanBatch.

    Operations that need RGB are passed over for other numbers of channels. Where a mean gray level is
    given, contrast uses it, carried along through brightness (the other operations hardly move it).

    Returns:
        levels, whole numbers in [0, 255]; `images` itself is changed.
    """
    # two uploads in all, from pageable memory: they do not wait for the device's queue
    values = torch.from_numpy(factors).to(images.device, non_blocking=True)
    wheres = torch.from_numpy(np.concatenate(rows)).to(images.device, non_blocking=True)
    chunk = max(1, _CACHE_VALUES // images[0].numel()) if images.device.type == "cpu" else len(images)
    for step, where in zip(steps, wheres.split([len(r) for r in rows]), strict=True):
        name = OPERATIONS[step]
        if name not in _NEED_RGB or images.shape[1] == 3:
            for some in where.split(chunk):
                images.index_copy_(0, some, _apply(name, images.index_select(0, some), values, some))
    return images


def _apply(name: str, image: Tensor, values: Tensor, rows: Tensor) -> Float[Tensor, "b C h w"]:
    """Apply one operation to samples `rows`; brightness moves their given gray means in `values`."""
    brightness, contrast, saturation, hue, radius, mean = values.index_select(0, rows)[..., None, None, None].unbind(1)
    if name == "brightness":
        moved = torch.where(mean < 0, mean, (mean * brightness).clamp(max=255)).flatten()
        values[:, 5].index_copy_(0, rows, moved)
        return (image * brightness).clamp(0, 255).floor()
    if name == "contrast":
        level = torch.where(mean < 0, luma(image).mean((1, 2, 3), keepdim=True), mean)
        return blend(level.add(0.5).floor(), image, contrast)
    if name == "saturation":
        return blend(luma(image), image, saturation)
    if name == "hue":
        return turn_hue(image, hue)
    if name == "gray":
        return luma(image).repeat(1, 3, 1, 1)
    if name == "blur":
        return blur(image, radius.flatten())
    return torch.minimum(image, 255 - image)  # solarize: inverts from 128 up


def blend(base: Tensor, image: Tensor, amount: Tensor) -> Tensor:
    """Base + amount * (image - base), clipped and cut to whole levels as Pillow's Blend.c does."""
    return (image - base).mul_(amount).add_(base).clamp_(0, 255).floor_()


def luma(image: Float[Tensor, "b C h w"]) -> Float[Tensor, "b 1 h w"]:
    """Gray level: ITU-R 601 in Pillow's 16-bit integers for RGB (exact in fp32), else the mean."""
    if image.shape[1] != 3:
        return image.mean(1, keepdim=True).round()
    r, g, b = image.unbind(1)
    return ((19595 * r + 38470 * g + 7471 * b + 32768) / 65536).floor_()[:, None]


def turn_hue(image: Float[Tensor, "b 3 h w"], turn: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """Turn the hue by a part of the circle, through Pillow's 8-bit HSV."""
    r, g, b = image.split(1, 1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = high - low
    # products with 0 and 1 where one would write `where`, which is five times slower on a CPU
    red = (r == high).float()
    green = (g == high).float().mul_(1 - red)
    blue = 1 - red - green
    hue = red * (g - b) + green * (2 * spread + b - r) + blue * (4 * spread + r - g)
    hue = wrap(hue / (6 * spread).clamp_(min=1), 1).mul_(255).floor_()  # a byte from here on
    chroma = (255 * spread / high.clamp(min=1)).floor_().mul_(high).div_(255)  # saturation is a byte, too
    sixths = wrap(hue + (turn * 255).trunc(), 256) * (6 / 255)
    # each channel falls from `high` by its distance from its own sixths of the circle
    fall = torch.empty_like(image)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        place = wrap(sixths + offset, 6)
        fall[:, channel : channel + 1] = torch.minimum(place, 4 - place).clamp_(0, 1)
    return (high - chroma * fall).add_(0.5).floor_()


def wrap(x: Tensor, period: int) -> Tensor:
    """X modulo period, in [0, period)."""
    return x - (x / period).floor_().mul_(period)


def blur(image: Float[Tensor, "b C h w"], radius: Float[Tensor, "b"]) -> Float[Tensor, "b C h w"]:
    """Blur as Pillow's GaussianBlur, its three box blurs taken as one product with a band matrix an axis."""
    across = blur_matrix(radius, image.shape[3])[:, None]  # [b 1 w w]
    down = across if image.shape[2] == image.shape[3] else blur_matrix(radius, image.shape[2])[:, None]
    return (down @ (image @ across.mT)).add_(0.5).floor_().clamp_(0, 255)


def blur_matrix(radius: Float[Tensor, "b"], n: int) -> Float[Tensor, "b n n"]:
    """The matrix that blurs n pixels as three box blurs, each repeating the pixels at the ends.

    Args:
        radius: standard deviation of each sample's Gaussian, in pixels, at most LARGEST_RADIUS.
        n: pixels along the axis.
    """
    whole, ends = box_of(radius[:, None])
    taps = torch.arange(-_REACH, _REACH + 1, device=radius.device).abs()
    box = torch.where(taps <= whole, 1.0, torch.where(taps == whole + 1, ends, 0.0))
    sums = F.pad((box / box.sum(1, keepdim=True)).cumsum(1), (1, 0))  # [b 2*_REACH+2]
    pixel = torch.arange(n, device=radius.device)
    first, last = pixel - pixel[:, None], pixel - pixel[:, None] + 1  # taps on pixel j, seen from pixel i
    first[:, 0], last[:, -1] = -_REACH, _REACH + 1  # the end pixels stand for all beyond them
    first, last = (edge.add(_REACH).clamp(0, 2 * _REACH + 1).flatten() for edge in (first, last))
    once = (sums.index_select(1, last) - sums.index_select(1, first)).view(-1, n, n)
    return once @ once @ once


def box_of(radius: Any) -> tuple[Any, Any]:
    """The box that, taken three times, has a Gaussian's variance: 2 l + 1 ones, and a fraction at both ends.

    Source: Gwosdek et al. 2011, Theoretical foundations of Gaussian convolution by extended box filtering.

    Args:
        radius: standard deviation of the Gaussian, a number or a tensor.
    Returns:
        l, and the fraction.
    """
    variance = radius**2 / 3
    whole = ((12 * variance + 1) ** 0.5 - 1) / 2 // 1
    ends = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole, ends


LARGEST_RADIUS = 7.0
"""standard deviation of a blur, in pixels"""
_REACH = 8
"""half the longest box, in pixels: enough for LARGEST_RADIUS"""
