"""Color jitter, gray, blur, solarize and normalization of uint8 RGB on a CPU, an image at a time, by OpenCV.

The operations of `photometry.py`, which is the reference and does all the rest: other devices, other numbers of
channels, machines without OpenCV. Here an image stays in the processor's cache from its first operation to its
last. Operations on single levels (brightness, contrast, solarize) are tables of 256 entries, and those that follow
each other become one table. A loader's workers do it, each image by itself; OpenCV uses none of its threads for images
as small as crops.

Sources: those of `photometry.py`.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from .photometry import OPERATIONS, box_of

try:
    cv2: Any = import_module("cv2")
except ImportError:  # the extra [fast]
    cv2 = None

_LEVELS = np.arange(256, dtype=np.float32)
_SOLARIZED = np.minimum(_LEVELS, 255 - _LEVELS).astype(np.uint8)
_LUMA = np.array([[19595, 38470, 7471, 32768]], np.float32) / 65536
"""Pillow's integers, for a cut to whole levels; exact in fp32, as is their sum"""
_LUMA_OF_EACH = _LUMA.repeat(3, 0)
_HSV_TO_BYTES = np.diag([255 / 360, 255, 1]).astype(np.float32) * np.float32(1 + 2e-6)
"""a whole byte by formula must not end just below it"""


def does(channels: int, device: torch.device) -> bool:
    """Whether images are rendered here: RGB on a CPU, where OpenCV is installed."""
    return channels == 3 and device.type == "cpu" and cv2 is not None


def render(
    images: UInt8[Tensor, "B 3 h w"],
    factors: Float32[np.ndarray, "B 6"],
    steps: tuple[int, ...],
    rows: tuple[Int64[np.ndarray, "_"], ...],
) -> UInt8[Tensor, "B 3 h w"]:
    """Apply to each image its steps, in order (see views.PlanBatch); levels, with channels last in memory.

    Args:
        images: stay as they are; best with channels last in memory.
        factors, steps, rows: as for `photometry.photometry`.
    """
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    operations: list[list[str]] = [[] for _ in images]
    for step, where in zip(steps, rows, strict=True):
        for row in where:
            operations[row].append(OPERATIONS[step])
    found = np.empty_like(pixels)
    for image, names, numbers, place in zip(pixels, operations, factors, found, strict=True):
        put(photometry(image, names, numbers), place)
    return torch.from_numpy(found).permute(0, 3, 1, 2)


def put(levels: UInt8[np.ndarray, "h w *_"], place: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write what `photometry` gives; gray becomes RGB (NumPy would take a hundred times as long for it)."""
    if levels.ndim == 2:
        cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB, dst=place)
    else:
        place[:] = levels


def normalize(
    images: UInt8[Tensor, "B 3 h w"], scale: Float[Tensor, "3 1 1"], shift: Float[Tensor, "3 1 1"]
) -> Float32[Tensor, "B 3 h w"]:
    """Level * scale + shift, channel by channel; contiguous."""
    factors, summands, normalized = scale.flatten().tolist(), shift.flatten().tolist(), torch.empty(images.shape)
    for image, places in zip(images.permute(0, 2, 3, 1).numpy(), normalized.numpy(), strict=True):
        for plane, factor, summand, place in zip(cv2.split(image), factors, summands, places, strict=True):
            cv2.addWeighted(plane, factor, plane, 0.0, summand, dst=place, dtype=cv2.CV_32F)
    return normalized


def photometry(
    image: UInt8[np.ndarray, "h w 3"], names: Sequence[str], numbers: Float32[np.ndarray, "6"]
) -> UInt8[np.ndarray, "h w *_"]:
    """Apply operations to one image.

    Args:
        image: stays as it is.
        names: of OPERATIONS; after "gray" come none that need RGB.
        numbers: brightness, contrast, saturation, hue, blur radius, mean gray level (-1: the image's own).
    Returns:
        levels, [h w 3], or [h w] once they are gray.
    """
    brightness, contrast, saturation, hue, radius, mean = map(float, numbers)
    table = None  # what is still to be done to the levels of `image`
    for name in names:
        if name == "brightness":
            table = _then(table, blend_table(0.0, brightness))
            mean = min(mean * brightness, 255.0)  # -1 stays negative
        elif name == "solarize":
            table = _then(table, _SOLARIZED)
        elif name == "contrast" and mean >= 0:
            table = _then(table, blend_table(mean, contrast))
        else:
            image, table = _look_up(image, table), None
            if name == "contrast":
                table = blend_table(cv2.mean(luma(image))[0], contrast)
            elif name == "saturation":
                image = saturate(image, saturation)
            elif name == "hue":
                image = turn_hue(image, hue)
            elif name == "gray":
                image = luma(image)
            else:
                image = blur(image, radius)
    return _look_up(image, table)


def _then(table: np.ndarray | None, after: np.ndarray) -> np.ndarray:
    return after if table is None else after[table]


def _look_up(image: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    return image if table is None else cv2.LUT(image, table)


def blend_table(base: float, amount: float) -> UInt8[np.ndarray, "256"]:
    """Each level, blended with the whole level next to `base`: clipped and cut as Pillow's Blend.c does."""
    whole = np.float32(base + 0.5) // 1
    blended = (_LEVELS - whole) * np.float32(amount) + whole
    return np.maximum(np.minimum(blended, 255), 0).astype(np.uint8)  # np.clip takes as long as all the rest


def luma(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Gray level, exactly Pillow's (cv2.COLOR_RGB2GRAY is a level off at 1 color in 800)."""
    return cv2.transform(image.astype(np.float32), _LUMA).astype(np.uint8)


def saturate(image: UInt8[np.ndarray, "h w 3"], amount: float) -> UInt8[np.ndarray, "h w 3"]:
    """Blend with the gray level, in fp32 and in Blend.c's order of operations: to the last bit before the cut."""
    pixels = image.astype(np.float32)
    gray = cv2.transform(pixels, _LUMA_OF_EACH)
    np.floor(gray, out=gray)
    pixels -= gray
    pixels *= np.float32(amount)
    pixels += gray
    if amount > 1:  # else it stays between the two
        np.clip(pixels, 0, 255, out=pixels)
    return pixels.astype(np.uint8)


def turn_hue(image: UInt8[np.ndarray, "h w 3"], turn: float) -> UInt8[np.ndarray, "h w 3"]:
    """Turn the hue by a part of the circle, through Pillow's 8-bit HSV.

    OpenCV's own 8-bit HSV has other steps on the way there (it rounds, to 256 hues), and Pillow's on the way back.
    """
    height, width, _ = image.shape
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)  # degrees, 0...1, 0...255
    levels = cv2.transform(hsv, _HSV_TO_BYTES).astype(np.uint8)
    hue = _first_of_three(width) * np.uint8(int(turn * 255) % 256)
    levels.reshape(height, -1)[:] += hue  # beyond 255 the circle begins anew
    return cv2.cvtColor(levels, cv2.COLOR_HSV2RGB_FULL)


@lru_cache(maxsize=16)
def _first_of_three(width: int) -> UInt8[np.ndarray, "w3"]:
    """1 0 0 1 0 0 ...: a line of pixels, where NumPy is slow on an axis of three."""
    return np.tile(np.array([1, 0, 0], np.uint8), width)


def blur(image: UInt8[np.ndarray, "h w *_"], radius: float) -> UInt8[np.ndarray, "h w *_"]:
    """Blur as Pillow's GaussianBlur: three boxes, each repeating the pixels at the ends and giving bytes.

    One pass with the three boxes' common kernel takes 0.8 of the time, and is up to 15 levels off near the ends.
    """
    whole, end = box_of(radius)
    box = np.array([end, *[1.0] * (2 * int(whole) + 1), end], np.float32) / np.float32(2 * (whole + end) + 1)
    for _ in range(3):
        image = cv2.sepFilter2D(image, -1, box, box, borderType=cv2.BORDER_REPLICATE)
    return image
