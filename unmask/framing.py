"""The evaluation crop: how an image of any size becomes the frame that a network is judged by.

Resizing is ATen's antialiased uint8 algorithm (Pillow's, within one gray level); views resize by it too.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from .positions import pair


class Frame(NamedTuple):
    """The rule of one protocol; defaults: k-NN and linear probes of all papers, fine-tuning of BEiT."""

    interpolation: str = "bicubic"
    """bicubic; bilinear (iBOT's fine-tuning); nearest for masks of class numbers"""
    tight_from: int = 384
    """pixels of the crop from which nothing is trimmed; MAE's fine-tuning: 225"""


PLAIN = Frame()
"""the rule of nearly everything"""


def margin(size: tuple[int, int], frame: Frame = PLAIN) -> float:
    """How much larger than the evaluation crop (h, w) an image is made before it is cut: 256/224, or not at all."""
    return 256 / 224 if 96 <= min(size) < frame.tight_from else 1.0


def center(image: UInt8[Tensor, "C H W"], size: int | tuple[int, int], frame: Frame = PLAIN) -> UInt8[Tensor, "C h w"]:
    """Cut the evaluation crop: no randomness.

    The papers' protocol: short side to round(256 / 224 * size), bicubic, then the center. Nothing is trimmed, the
    short side goes to `size`, from 384 pixels on (as the papers do) and below 96 (small images are framed tight).

    Args:
        image: any size.
        size: side of the result, or (height, width), in pixels.
        frame: where a protocol differs.
    """
    h, w = pair(size)
    height, width = image.shape[1:]
    least_h, least_w = (round(margin((h, w), frame) * side) for side in (h, w))
    if height * least_w <= width * least_h:  # the height limits; torchvision truncates the other side
        shape = (least_h, max(least_w, int(least_h * width / height)))
    else:
        shape = (max(least_h, int(least_w * height / width)), least_w)
    image = resize(image, shape, frame.interpolation)
    top, left = round((shape[0] - h) / 2), round((shape[1] - w) / 2)
    return image[:, top : top + h, left : left + w]


def resize(image: UInt8[Tensor, "C H W"], shape: tuple[int, int], interpolation: str) -> UInt8[Tensor, "C h w"]:
    """Resize with antialiasing, as Pillow does; channels last in memory, which is ATen's fast path."""
    if tuple(image.shape[1:]) == tuple(shape):
        return image
    if interpolation == "nearest":
        return F.interpolate(image[None], size=tuple(shape), mode="nearest-exact")[0]
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, size=tuple(shape), mode=interpolation, align_corners=False, antialias=True)[0]
