"""`unmask show MODEL WHAT IMAGES`: from a run and some images to a picture."""

import difflib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from .config import UsageError
from .data.decode import decode
from .data.sources import BadImage, Source, open_source
from .data.stream import Stream
from .methods.mae import MAE
from .models import image_size, parse_run
from .randomness import key
from .run import Run
from .show import augmentations, curves, reconstruction
from .train import to_device
from .views import center


def picture(model: str, what: str, data: str | None = None, out: str | Path | None = None, count: int = 8) -> Path:
    """Draw one of the pictures.

    Args:
        model: `RUN[@STEP]`.
        what: reconstruction (IMAGES), augmentations (DATA; default: the run's own), curves.
        data: images, as for `open_source`.
        out: the file; None: `RUN/figures/WHAT.png`.
        count: images drawn, evenly spread over the source.
    Returns:
        the file.
    Raises:
        ValueError, FileNotFoundError: unknown picture, or one that this model cannot give.
    """
    if what not in PICTURES:
        near = difflib.get_close_matches(what, PICTURES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(PICTURES)}"
        raise UsageError(f"no picture {what!r}; {hint}")
    if count < 1:
        raise UsageError(f"--count {count}: give a positive number")
    run, step, _ = parse_run(model)
    where = Path(out) if out is not None else run.figures / f"{what}.png"
    return PICTURES[what](run, step, data, where, count)


def draw_reconstruction(run: Run, step: int | None, source: Source, out: Path, count: int = 8) -> Path:
    """Let the MAE of a run paint the hidden patches of images that lie evenly spread over a source."""
    method = run.method(step)
    if not isinstance(method, MAE):
        raise ValueError(f"{run.path} is a {type(method).__name__}; only an MAE reconstructs pixels")
    data, size = run.config.data, image_size(method)
    images, names = [], []
    for image, name in _spread(source, count, data.channels, data.range):
        images.append(center(image, size))
        names.append(name)
    if not images:
        raise ValueError(f"{source.name}: none of its images can be read")
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    normalized = (torch.stack(images).float() / 255 - mean) / std
    (policy,), (grid,) = method.config.masks, method.config.grids()
    drawn = [policy(grid, key(run.config.seed, "show", i)) for i in range(len(images))]
    mask = torch.stack([torch.from_numpy(m).flatten() for m in drawn])
    panels = reconstruction.reconstruct(method, normalized, mask, data.mean, data.std)
    return reconstruction.draw(panels, out, labels=names)


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
    places = sorted({i * len(source) // count for i in range(count)})
    for place, end in pairwise([*places, len(source)]):
        for i in range(place, end):
            try:
                record = source[i]
                image = decode(record, channels=channels, value_range=value_range)
            except BadImage:
                continue
            yield image, Path(record.key).name
            break


def _reconstruction(run: Run, step: int | None, data: str | None, out: Path, count: int) -> Path:
    if data is None:
        raise ValueError("reconstruction needs IMAGES: a folder, a file or a quoted glob, tar, parquet or demo:test")
    return draw_reconstruction(run, step, open_source(data, "none"), out, count)


def _augmentations(run: Run, step: int | None, data: str | None, out: Path, count: int) -> Path:
    return draw_augmentations(run, open_source(data or run.config.data.train, "none"), out, count)


def _curves(run: Run, step: int | None, data: str | None, out: Path, count: int) -> Path:
    return curves.draw(run.metrics(), out)


PICTURES: dict[str, Callable[[Run, int | None, str | None, Path, int], Path]] = {
    "reconstruction": _reconstruction,
    "augmentations": _augmentations,
    "curves": _curves,
}
"""WHAT of `unmask show`"""
