"""`unmask show MODEL WHAT IMAGES`: from a run and some images to a picture."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from .analyses import own_images, study
from .analyze import ANALYSES
from .analyze.targets import prototypes
from .borrow import pictured
from .config import UsageError
from .data.decode import decode
from .data.sources import BadImage, Source, open_source
from .data.stream import Stream
from .framing import center, margin
from .masks import MaskPolicy
from .methods.base import Method
from .methods.beit import BEiT
from .methods.dvae import DVAE
from .methods.ibot import IBOT
from .methods.mae import MAE
from .models import image_size, vit_of
from .nearest import unknown
from .positions import pair
from .randomness import key
from .run import Run
from .show import attention, augmentations, curves, patches, reconstruction, tokens
from .step import to_device
from .views import Plan, crop, twin
from .vit import ViT


class Request(NamedTuple):
    """What was asked for, opened."""

    run: Run
    step: int | None
    """of the checkpoint; None: the newest"""
    part: str
    """student, teacher or empty: the method's own choice"""
    data: str | None
    """images, as for `open_source`"""
    out: Path
    images: int
    """how many are drawn"""
    size: tuple[int, int] | None
    """(height, width) of the center crop; None: the run's own"""


def picture(
    model: str,
    what: str,
    data: str | None = None,
    out: str | Path | None = None,
    count: int | None = None,
    size: int | tuple[int, int] | None = None,
    heads: int | None = None,
    **options: Any,
) -> Path:
    """Draw one of the pictures, or run one of the analyses and draw what it found.

    Args:
        model: `RUN[@STEP][:student|:teacher]`; for attention and patches any other MODEL too; for an analysis
            see `analyses.study`.
        what: reconstruction, tokens, attention, patches (of IMAGES), augmentations (of DATA; default: the
            run's own), curves; or an analysis.
        data: images, as for `open_source`.
        out: the file; None: `RUN/figures/WHAT.png`.
        count: images drawn, evenly spread over the source (8), or measured.
        size: of the images, for attention, patches and a tokenizer's tokens: any that divides into
            patches; None: the run's own.
        heads: attention heads of a file that does not tell them.
        options: of an analysis: train, seed, steps, device.
    Returns:
        the file.
    Raises:
        ValueError, FileNotFoundError: unknown picture, or one that this model cannot give.
    """
    if what not in {*PICTURES, *ANALYSES}:
        raise UsageError(unknown("picture", what, [*PICTURES, *ANALYSES]))
    if count is not None and count < 1:
        raise UsageError(f"--count {count}: give a positive number")
    sides = None if size is None else pair(size)
    if sides is not None and what not in SIZED:
        raise UsageError(f"--size {size}: {what} is drawn at the run's own size; --size is for {', '.join(SIZED)}")
    if sides is not None and min(sides) < 1:
        raise UsageError(f"--size {size}: give a positive number of pixels")
    if what in ANALYSES:
        return study(model, what, data, out, count=count, **options)
    if options:
        raise UsageError(f"--{next(iter(options))} is for analyses ({', '.join(ANALYSES)}); {what} has no use for it")
    run, step, part = pictured(model, what, heads)
    where = Path(out) if out is not None else run.figures / f"{what}.png"
    return PICTURES[what](Request(run, step, part, data, where, count or 8, sides))


def draw_reconstruction(run: Run, step: int | None, source: Source, out: Path, count: int = 8) -> Path:
    """Let the MAE of a run paint the hidden patches of images that lie evenly spread over a source."""
    method = run.method(step)
    if not isinstance(method, MAE):
        raise ValueError(f"{run.path} is a {type(method).__name__}; only an MAE reconstructs pixels")
    data, size = run.config.data, image_size(method)
    found, names = _read(run, source, count)
    images = torch.stack([center(image, size) for image in found])
    (policy,), (grid,) = method.config.masks, method.config.grids()
    mask = _masks(run, policy, grid, len(images))
    panels = reconstruction.reconstruct(method, _normalize(images, run), mask, data.mean, data.std)
    return reconstruction.draw(panels, out, labels=names)


def draw_tokens(
    run: Run,
    step: int | None,
    source: Source,
    out: Path,
    count: int = 8,
    size: tuple[int, int] | None = None,
) -> Path:
    """Draw what a run's tokenizer makes of images, or which tokens its BEiT sees behind a mask.

    Args:
        run: of a dVAE or a BEiT.
        step: of the checkpoint; None: the newest.
        source: images, evenly spread over it.
        out: the file.
        count: images drawn.
        size: (height, width), of a dVAE's images: any that divides into cells; None: the run's own.
    """
    method, data = run.method(step), run.config.data
    if isinstance(method, DVAE):
        view = method.config.views[0]
        shape = size or pair(view.twin or view.size)
        found, names = _read(run, source, count)
        images = torch.stack([center(image, shape) for image in found])
        panels = tokens.tokenize(method.tokenizer(), images.float() / 255)
        return tokens.draw(panels, out, labels=names)
    if not isinstance(method, BEiT):
        raise ValueError(f"{run.path} is a {type(method).__name__}; only a dvae and a beit have tokens")
    if size is not None:
        raise ValueError(f"--size {size[0]}: BEiT's tokens are those of its own images; leave it out")
    method.verify()
    (view,), (policy,), (grid,) = method.config.views, method.config.masks, method.config.grids()
    found, names = _read(run, source, count)
    plans = [_central(image, view.shape, view.twin) for image in found]
    images, twins = (torch.stack(list(map(render, found, plans))) for render in (crop, twin))
    mask = _masks(run, policy, grid, len(images))
    guesses = tokens.predict(method, _normalize(images, run), twins.float() / 255, mask, data.mean, data.std)
    return tokens.draw(guesses, out, labels=names)


def draw_attention(
    run: Run,
    step: int | None,
    source: Source,
    out: Path,
    count: int = 8,
    size: tuple[int, int] | None = None,
    part: str = "",
) -> Path:
    """Draw where the class token of a run's backbone looks; `part` chooses student or teacher."""
    method, data = run.method(step), run.config.data
    vit = _vit(method, run, part)
    shape = size or vit.config.image_hw
    found, names = _read(run, source, count)
    images = torch.stack([center(image, shape) for image in found])
    maps = attention.attend(vit, _normalize(images, run), data.mean, data.std)
    note = f"{type(method).__name__} gives [CLS] no loss of its own" if isinstance(method, (MAE, BEiT)) else ""
    return attention.draw(maps, out, labels=names, note=note)


def draw_patches(
    run: Run,
    step: int | None,
    source: Source,
    out: Path,
    count: int = 8,
    size: tuple[int, int] | None = None,
    part: str = "",
) -> Path:
    """Draw what the patches of images have in common for a run's backbone; `part` as above."""
    method, data = run.method(step), run.config.data
    vit = _vit(method, run, part)
    shape = size or vit.config.image_hw
    found, names = _read(run, source, count)
    images = _normalize(torch.stack([center(image, shape) for image in found]), run)
    ids = prototypes(method, images, part)[0] if isinstance(method, IBOT) and method.config.masks else None
    return patches.draw(patches.compare(vit, images, data.mean, data.std, ids=ids), out, labels=names)


def draw_augmentations(run: Run, source: Source, out: Path, count: int = 8) -> Path:
    """Draw the views and masks of the first batch, as the method gets them."""
    config = run.config
    stream = Stream(
        source,
        views=config.method.views,
        masks=config.method.masks,
        grids=config.method.grids(),
        seed=config.seed,
        batch=count,
        device_batch=count,
        steps=1,
        channels=config.data.channels,
        value_range=config.data.range,
    )
    (host,) = next(iter(stream))
    batch = to_device(host, config, torch.device("cpu"))
    grids, mean, std = config.method.grids(), config.data.mean, config.data.std
    return augmentations.draw(batch.views, out, mean=mean, std=std, masks=batch.masks, grids=grids, most=count)


def _spread(
    source: Source, count: int, channels: int, value_range: tuple[float, float] | None
) -> Iterator[tuple[UInt8[Tensor, "C H W"], str]]:
    """`count` images and their names, evenly spaced, so that classes take turns; a bad one gives way to the next."""
    places = sorted({(2 * i + 1) * len(source) // (2 * count) for i in range(count)})
    for place, end in pairwise([*places, len(source)]):
        for i in range(place, end):
            try:
                record = source[i]
                image = decode(record, channels=channels, value_range=value_range)
            except BadImage:
                continue
            yield image, Path(record.key).name
            break


def _read(run: Run, source: Source, count: int) -> tuple[list[UInt8[Tensor, "C _ _"]], list[str]]:
    """The images to draw, whole, and their names.

    Raises:
        ValueError: there is none.
    """
    data = run.config.data
    found = list(_spread(source, count, data.channels, data.range))
    if not found:
        raise ValueError(f"{source.name}: none of its images can be read")
    return [image for image, _ in found], [name for _, name in found]


def _normalize(images: UInt8[Tensor, "B C h w"], run: Run) -> Float[Tensor, "B C h w"]:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (run.config.data.mean, run.config.data.std))
    return (images.float() / 255 - mean) / std


def _masks(run: Run, policy: MaskPolicy, grid: tuple[int, int], count: int) -> Bool[Tensor, "B N"]:
    """A mask an image, the same in every picture of this run."""
    drawn = [policy(grid, key(run.config.seed, "show", i)) for i in range(count)]
    return torch.stack([torch.from_numpy(mask).flatten() for mask in drawn])


def _vit(method: Method, run: Run, part: str) -> ViT:
    if isinstance(method, DVAE):
        raise ValueError(f"{run.path} is a DVAE, which has no ViT; draw its tokens: unmask show RUN tokens IMAGES")
    return vit_of(method, part)


def _central(image: UInt8[Tensor, "C H W"], size: tuple[int, int], side: int | None) -> Plan:
    """The evaluation crop as a training crop without randomness: one box, which can be rendered twice."""
    height, width = image.shape[1:]
    scale = min(height / size[0], width / size[1]) / margin(size)
    h, w = (max(1, min(most, round(scale * length))) for length, most in zip(size, (height, width), strict=True))
    return Plan(((height - h) // 2, (width - w) // 2, h, w), size, False, "bicubic", side)


def _images(asked: Request, what: str) -> Source:
    if asked.data is None:
        raise ValueError(f"{what} needs IMAGES: a folder, a file or a quoted glob, tar, parquet or demo:test")
    return open_source(asked.data, "none")


def _reconstruction(asked: Request) -> Path:
    return draw_reconstruction(asked.run, asked.step, _images(asked, "reconstruction"), asked.out, asked.images)


def _tokens(asked: Request) -> Path:
    source = _images(asked, "tokens")
    return draw_tokens(asked.run, asked.step, source, asked.out, asked.images, asked.size)


def _attention(asked: Request) -> Path:
    source = _images(asked, "attention")
    return draw_attention(asked.run, asked.step, source, asked.out, asked.images, asked.size, asked.part)


def _patches(asked: Request) -> Path:
    source = _images(asked, "patches")
    return draw_patches(asked.run, asked.step, source, asked.out, asked.images, asked.size, asked.part)


def _augmentations(asked: Request) -> Path:
    # without DATA the batch that the run began with
    source = own_images(asked.run) if asked.data is None else open_source(asked.data, "none")
    return draw_augmentations(asked.run, source, asked.out, asked.images)


def _curves(asked: Request) -> Path:
    return curves.draw(asked.run.metrics(), asked.out)


PICTURES: dict[str, Callable[[Request], Path]] = {
    "reconstruction": _reconstruction,
    "tokens": _tokens,
    "attention": _attention,
    "patches": _patches,
    "augmentations": _augmentations,
    "curves": _curves,
}
"""WHAT of `unmask show`"""
SIZED = ("tokens", "attention", "patches")
"""those that can be drawn at another size than the run's"""
