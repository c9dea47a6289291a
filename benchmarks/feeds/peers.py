"""The usual input pipelines: torchvision's, an image at a time in workers, and kornia's, a batch at a time.

Of the ten views all give normalized floats. "torchvision v1" is what the official repositories of MAE, DINO and
iBOT do, with their published parameters, Pillow reading and augmenting; "v2" is torchvision's newer transforms on
uint8 tensors. kornia's crops are resampled without antialiasing, which is less work, and its batches need images
of one size: workers bring them to the size of most, by antialiased resizing where they differ.
"""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from race import Absent, Took, Turn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from unmask.views import View, expand

from .work import MEAN, STD, Gate, Work, pin

KERNEL = 13
"""pixels of a Gaussian kernel: three standard deviations of 2 on each side, where a package asks"""

Transform = Callable[[Any], Any]


class Files(Dataset):
    """A folder's images, over and over, opened (where they are not yet) and transformed one at a time."""

    def __init__(self, folder: str, work: Work, read: Transform, transforms: list[Transform]):
        self.files = sorted(map(str, Path(folder).glob("*.jpg")))
        self.images, self.gate, self.read, self.transforms = work.images, Gate(work.workers), read, transforms
        self.ready = [read(file) for file in self.files] if work.decoded else []

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, i: int) -> list[Tensor]:
        self.gate.enter()
        place = i % len(self.files)
        image = self.ready[place] if self.ready else self.read(self.files[place])
        return [transform(image) for transform in self.transforms]


def loading(files: Files, work: Work, after: Callable[[list[Tensor]], object] | None = None) -> Turn:
    """Go through all batches once."""

    def turn() -> Took:
        loader = DataLoader(files, work.batch, num_workers=work.workers, multiprocessing_context="fork")
        took = Took(0)
        for batch in loader:
            if after is not None:
                after(batch)
            took = files.gate.since()
        return took

    return turn


# --- torchvision v1: Pillow -----------------------------------------------------------------------------


class Blur:
    """Pillow's Gaussian blur, sometimes."""

    def __init__(self, p: float, radius: tuple[float, float]):
        self.p, self.radius = p, radius

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.radius)))


class Solarize:
    """Pillow's solarization, sometimes."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.p else image


def _open(file: str) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _size(file: str) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def pillow(folder: str, work: Work) -> Turn:
    """torchvision's first transforms."""
    pin(work.workers)

    def chain(view: View) -> Transform:
        steps: list[Transform] = [
            v1.RandomResizedCrop(view.size, view.scale, interpolation=v1.InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(),
        ]
        if view.jitter is None:
            return v1.Compose([*steps, v1.PILToTensor()])
        j = view.jitter
        steps += [
            v1.RandomApply([v1.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue)], j.p),
            v1.RandomGrayscale(view.gray),
        ]
        if view.blur is not None:
            steps.append(Blur(view.blur.p, view.blur.radius))
        if view.solarize:
            steps.append(Solarize(view.solarize))
        return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(MEAN, STD)])

    return loading(Files(folder, work, _open, [chain(view) for view in expand(work.views)]), work)


# --- torchvision v2: uint8 tensors ----------------------------------------------------------------------


def _decode(file: str) -> Tensor:
    return decode_image(read_file(file), ImageReadMode.RGB)


def tensors(folder: str, work: Work) -> Turn:
    """torchvision's second transforms, on uint8 tensors."""
    pin(work.workers)

    def chain(view: View) -> Transform:
        steps: list[Transform] = [
            v2.RandomResizedCrop(view.size, view.scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        if view.jitter is None:
            return v2.Compose(steps)
        j = view.jitter
        steps += [
            v2.RandomApply([v2.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue)], j.p),
            v2.RandomGrayscale(view.gray),
        ]
        if view.blur is not None:
            steps.append(v2.RandomApply([v2.GaussianBlur(KERNEL, view.blur.radius)], view.blur.p))
        if view.solarize:
            steps.append(v2.RandomSolarize(128, view.solarize))
        return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    return loading(Files(folder, work, _decode, [chain(view) for view in expand(work.views)]), work)


# --- kornia: batches ------------------------------------------------------------------------------------


def kornia(folder: str, work: Work) -> Turn:
    """kornia's augmentations of whole batches, in the parent process."""
    try:
        from kornia import augmentation as K
    except ImportError:
        raise Absent("kornia is not installed: pip install 'unmask[bench]'") from None
    pin(work.workers)

    def chain(view: View) -> nn.Module:
        steps: list[nn.Module] = [
            K.RandomResizedCrop(view.shape, view.scale, resample="BICUBIC"),
            K.RandomHorizontalFlip(),
        ]
        if view.jitter is None:
            return nn.Sequential(*steps)
        j = view.jitter
        steps += [
            K.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue, p=j.p),
            K.RandomGrayscale(p=view.gray),
        ]
        if view.blur is not None:
            steps.append(K.RandomGaussianBlur(KERNEL, view.blur.radius, p=view.blur.p))
        if view.solarize:
            steps.append(K.RandomSolarize(0.0, 0.0, p=view.solarize))  # inverts from one half up
        return nn.Sequential(*steps, K.Normalize(MEAN, STD))

    chains = [chain(view) for view in expand(work.views)]
    files = Files(folder, work, _decode, [])
    (width, height), _ = Counter(map(_size, files.files)).most_common(1)[0]
    files.transforms = [v2.Resize((height, width), antialias=True)]  # gives an image of that size back as it is

    def after(batch: list[Tensor]) -> list[Tensor]:
        images = batch[0].float() / 255
        crops = [augment(images) for augment in chains]
        if work.policy == "crop":
            return [(255 * crop).clamp(0, 255).round().to(torch.uint8) for crop in crops]
        return crops

    return loading(files, work, after)
