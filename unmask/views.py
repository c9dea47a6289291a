"""Views: how an image becomes the crops that a method sees.

`plan` draws every parameter and touches no pixel; `crop` cuts, resizes and flips on the CPU, in uint8;
`color` jitters, blurs, solarizes, normalizes, erases and mixes a batch on its device, from the plans. So any
view of any run can be drawn again from its key, and uint8 crosses to the device at a quarter of the size.

Geometry is torchvision's RandomResizedCrop, resizing is ATen's antialiased uint8 bicubic (Pillow's
algorithm, within one gray level); photometric operations are in `photometry.py`, by OpenCV in `photometry_cpu.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from . import passes, photometry_cpu, randaugment
from .boxes import random_box
from .erasing import Erased, draw_erased, erase
from .framing import resize
from .jitter import Jitter, draw_jitter
from .mixing import Mix, Mixed, mix_images
from .photometry import LARGEST_RADIUS, OPERATIONS, photometry
from .randaugment import RandAugment
from .randomness import between


@dataclass(frozen=True)
class Blur:
    """Pillow's GaussianBlur with a random radius."""

    p: float = 0.5
    """probability; iBOT: first global crop 1, second 0.1, local 0.5"""
    radius: tuple[float, float] = (0.1, 2.0)
    """standard deviation in pixels, uniform; at most 7"""

    def __post_init__(self) -> None:
        if not 0 < self.radius[0] <= self.radius[1] <= LARGEST_RADIUS:
            raise ValueError(f"blur radius {self.radius}: give 0 < smallest <= largest <= {LARGEST_RADIUS:g}")


@dataclass(frozen=True)
class View:
    """One kind of random crop."""

    size: int | tuple[int, int] = 224
    """side, or (height, width), in pixels"""
    scale: tuple[float, float] = (0.2, 1.0)
    """part of the image's area that is cropped; MAE (0.2, 1), BEiT (0.08, 1)"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """width / height of the cropped box, log-uniform"""
    flip: float = 0.5
    """probability of a mirror image"""
    jitter: Jitter | None = None
    """color jitter"""
    gray: float = 0.0
    """probability of gray; iBOT 0.2"""
    blur: Blur | None = None
    """Gaussian blur"""
    solarize: float = 0.0
    """probability of inverting levels from 128 up; iBOT's second global crop 0.2"""
    twin: int | None = None
    """side of a second rendering of the same crop by Lanczos, for a tokenizer; BEiT 112"""
    count: int = 1
    """how many crops of this kind; iBOT's local crops: 10"""
    jitter_before_crop: bool = False
    """contrast about the whole image's mean gray level, as when jitter comes first (BEiT)"""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """how the crop is resized, antialiased"""
    randaugment: RandAugment | None = None
    """with labels: random operations after the flip, on the CPU"""
    erase: float = 0.0
    """with labels: chance of a box of noise; fine-tuning 0.25"""
    mix: Mix | None = None
    """with labels: mixup and CutMix with another image of the batch"""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the crop."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Plan(NamedTuple):
    """Every random choice about one crop of one image."""

    box: tuple[int, int, int, int]
    """top, left, height, width, in pixels of the image"""
    shape: tuple[int, int]
    flip: bool
    interpolation: str
    twin: int | None
    order: tuple[int, ...] = ()
    """jitter operations in their order: 0 brightness, 1 contrast, 2 saturation, 3 hue"""
    factors: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    gray: bool = False
    radius: float = 0.0
    """of the blur; 0: none"""
    solarize: bool = False
    gray_mean: float = -1.0
    """mean gray level for contrast, 0...255; -1: the crop's own"""
    augment: tuple[randaugment.Operation, ...] = ()
    """RandAugment's operations"""
    fill: tuple[int, ...] = ()
    """what shows beyond the edges of an image that RandAugment moves"""
    erased: Erased | None = None
    image: tuple[int, int] | None = None
    """(H, W) in whose pixels the box is; None: of whatever image is cropped"""

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the photometric operations need: a row of PlanBatch.factors."""
        return (*self.factors, self.radius, self.gray_mean)

    @property
    def operations(self) -> list[str]:
        """Photometric operations by name, in the order of execution."""
        after = (("gray", self.gray), ("blur", self.radius > 0), ("solarize", self.solarize))
        return [*(OPERATIONS[k] for k in self.order), *(name for name, asked in after if asked)]


class PlanBatch(NamedTuple):
    """What the plans of a batch leave to the device; the photometric part as NumPy arrays.

    `rows[k]` are the samples that operation `steps[k]` (an index into OPERATIONS) applies to, in the
    order of execution: counted here, on the CPU, so that the device is never asked to wait.
    """

    factors: Float32[np.ndarray, "B 6"]
    """brightness, contrast, saturation, hue, blur radius, mean gray level"""
    steps: tuple[int, ...]
    rows: tuple[Int64[np.ndarray, "_"], ...]
    erased: tuple[tuple[int, Erased], ...] = ()
    """(row, box of noise)"""
    mixed: tuple[Mixed, ...] = ()
    """runs of rows that are mixed with their neighbors; empty: none is"""


def expand(views: tuple[View, ...]) -> tuple[View, ...]:
    """Repeat each view `count` times: one entry for each crop of an image."""
    return tuple(view for view in views for _ in range(view.count))


def plan(view: View, size: tuple[int, int], rng: np.random.Generator) -> Plan:
    """Draw every parameter of one crop; touch no pixel.

    Source: torchvision's RandomResizedCrop.get_params, ColorJitter.get_params; iBOT's `main_ibot.py`.
    Differs from the original: the draws come from NumPy's Philox, the distributions are the same.

    Args:
        view: the policy.
        size: (H, W) of the image.
        rng: the generator of this view of this sample.
    """
    box = random_box(size, view.scale, view.ratio, rng)
    flip = rng.random() < view.flip
    order, factors = draw_jitter(view.jitter, rng)
    gray = view.gray > 0 and rng.random() < view.gray
    blurred = view.blur and rng.random() < view.blur.p
    radius = between(*view.blur.radius, rng) if view.blur and blurred else 0.0
    solarize = view.solarize > 0 and rng.random() < view.solarize
    drawn = Plan(
        box, view.shape, flip, view.interpolation, view.twin, order, factors, gray, radius, solarize, image=size
    )
    if view.randaugment:
        drawn = drawn._replace(augment=randaugment.draw(view.randaugment, rng), fill=view.randaugment.fill)
    if view.erase and rng.random() < view.erase:
        drawn = drawn._replace(erased=draw_erased(view.shape, rng))
    return drawn


def crop(image: UInt8[Tensor, "C H W"], plan: Plan) -> UInt8[Tensor, "C h w"]:
    """Cut the plan's box, resize it and mirror it, in uint8; then RandAugment, if it is planned.

    Args:
        image: all of it, at the size that was planned for or a smaller one (see `divisor`).
    """
    cut = resize(_inside(image, plan), plan.shape, plan.interpolation)
    return randaugment.apply(cut.flip(-1) if plan.flip else cut, plan.augment, plan.fill)


def twin(image: UInt8[Tensor, "C H W"], plan: Plan) -> UInt8[Tensor, "C t t"]:
    """Render the same box and mirroring again at the twin's size, by Pillow's Lanczos (BEiT)."""
    if plan.twin is None:
        raise ValueError("this view has no twin; give it a size: View(twin=112)")
    region = _inside(image, plan).permute(1, 2, 0).numpy()
    # Pillow resizes RGB at once, other numbers of channels band by band
    bands = [region] if region.shape[2] == 3 else list(np.moveaxis(region, 2, 0))
    size = (plan.twin, plan.twin)
    images = [Image.fromarray(np.ascontiguousarray(band)).resize(size, Image.Resampling.LANCZOS) for band in bands]
    pixels = np.dstack([np.array(image) for image in images])
    drawn = torch.from_numpy(pixels).permute(2, 0, 1)
    return drawn.flip(-1) if plan.flip else drawn


def _inside(image: UInt8[Tensor, "C H W"], plan: Plan) -> UInt8[Tensor, "C _ _"]:
    """The plan's box, to the nearest pixel of an image that may be smaller than the one planned for."""
    top, left, height, width = plan.box
    rows, columns = (top, top + height), (left, left + width)
    if plan.image is not None and plan.image != tuple(image.shape[1:]):
        down, across = image.shape[1] / plan.image[0], image.shape[2] / plan.image[1]
        rows, columns = [round(edge * down) for edge in rows], [round(edge * across) for edge in columns]
    return image[:, rows[0] : rows[1], columns[0] : columns[1]]


def divisor(plans: Sequence[Plan]) -> int:
    """By how much an image may be made smaller before it is cropped: 1, 2, 4 or 8.

    What is left of each box has at least the pixels of its crop, and of its twin, in both directions, and antialiased
    resizing does the rest. Boxes move by half a pixel of the smaller image at most.
    """
    sides = [
        (side, max(of_crop, plan.twin or 0) + 1)  # one more, as boxes are rounded to the smaller image's pixels
        for plan in plans
        for side, of_crop in zip(plan.box[2:], plan.shape, strict=True)
    ]
    return next(d for d in (8, 4, 2, 1) if d == 1 or all(d * least <= side for side, least in sides))


def gray_mean(image: UInt8[Tensor, "C H W"]) -> float:
    """The image's mean gray level, 0...255: ITU-R 601 luma of RGB, else the mean of all channels."""
    means = image.sum((1, 2), dtype=torch.int64).double() / (image.shape[1] * image.shape[2])
    weights = (0.299, 0.587, 0.114) if len(means) == 3 else (1 / len(means),) * len(means)
    return float(means @ torch.tensor(weights, dtype=torch.float64))


def stack(plans: list[Plan], mixed: tuple[Mixed, ...] = (), rendered: bool = False) -> PlanBatch:
    """Gather what is to be done to a batch on its device, and who needs which operation when.

    Args:
        plans: one an image.
        mixed: see PlanBatch.
        rendered: whether `render` did the photometric operations.
    """
    factors = np.array([p.numbers for p in plans], np.float32)
    chosen = [] if rendered else _turns(plans)
    erased = tuple((row, p.erased) for row, p in enumerate(plans) if p.erased is not None)
    return PlanBatch(factors, tuple(k for k, _ in chosen), tuple(rows for _, rows in chosen), erased, mixed)


def _turns(plans: list[Plan]) -> list[tuple[int, np.ndarray]]:
    """An operation, and the samples that it applies to: in the order of execution of each of them."""
    turns = [(k, [p.order[turn : turn + 1] == (k,) for p in plans]) for turn in range(4) for k in range(4)]
    turns.append((OPERATIONS.index("gray"), [p.gray for p in plans]))
    turns.append((OPERATIONS.index("blur"), [p.radius > 0 for p in plans]))
    turns.append((OPERATIONS.index("solarize"), [p.solarize for p in plans]))
    return [(operation, np.flatnonzero(who)) for operation, who in turns if any(who)]


def render(image: UInt8[Tensor, "3 h w"], plan: Plan, place: UInt8[Tensor, "3 h w"]) -> None:
    """Render the plan's photometric operations by OpenCV, see `photometry_cpu.does`.

    Args:
        image: a crop, or its twin; stays as it is.
        place: where the levels are written; channels last in memory.
    """
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    numbers = np.array(plan.numbers, np.float32)  # as `stack` gives them
    levels = photometry_cpu.photometry(pixels, plan.operations, numbers)
    photometry_cpu.put(levels, place.permute(1, 2, 0).numpy())


def color(
    images: UInt8[Tensor, "B C h w"], plans: PlanBatch, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "B C h w"]:
    """Render the plans' photometric operations on the device of `images`, normalize, erase, mix.

    Args:
        images: crops, on any device.
        plans: of the same samples, from `stack`.
        mean: of images in [0, 1], one value a channel.
        std: likewise.
    Returns:
        (x / 255 - mean) / std, fp32, contiguous.
    """
    scale, shift = _statistics(tuple(mean), tuple(std), images.device)
    if passes.can_normalize(images) and not plans.steps:
        normalized = passes.normalize(images, scale, shift)
    elif photometry_cpu.does(images.shape[1], images.device):
        levels = photometry_cpu.render(images, plans.factors, plans.steps, plans.rows) if plans.steps else images
        normalized = photometry_cpu.normalize(levels, scale, shift)
    else:
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        if plans.steps:
            pixels = photometry(pixels, plans.factors, plans.steps, plans.rows)
        normalized = torch.addcmul(shift, pixels, scale)
    erase(normalized, plans.erased)
    mix_images(normalized, plans.mixed)
    return normalized


_KEPT: dict[tuple, tuple[Tensor, Tensor]] = {}


def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand of normalization; kept on the device, as making them there would wait for it."""
    place = (mean, std, device)
    if place not in _KEPT:
        scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(-1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(-1, 1, 1)
        _KEPT[place] = (scale, shift)
    return _KEPT[place]


def skipped_operations(view: View, channels: int) -> list[str]:
    """Name the operations of a view that need RGB and are left out for other numbers of channels."""
    if channels == 3:
        return []
    jitter = view.jitter or Jitter(saturation=0.0, hue=0.0)
    asked = {"saturation": jitter.saturation, "hue": jitter.hue, "gray": view.gray}
    return [name for name, amount in asked.items() if amount > 0]
