"""Features once: the same unmasked forward, pooling and crop for training and test images.

Most disappointments with frozen features are protocol mistakes, so there is one door: a center
crop, evaluation mode, no mask, the final norm, and pooling by name. One forward pass gives every layer
and every pooling. It is streamed: a large set costs memory for its features, never for its pixels, and
none where `room` puts them on disk.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from ..data.record import Source
from ..vit import Tokens, ViT
from .crops import Cut, crops

Pool = Literal["cls", "mean", "patches"]
"""the class token, the mean of the patches, or all patches (fp16)"""
Report = Callable[[int, int], None]
"""progress(images done, images in all)"""

Room = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""room(name, shape, type): an array to fill, in memory or on disk"""

PIXELS = 768
"""features of a raw image at most: 16 x 16 x 3; four times as many take minutes to fit and are worth no more"""


class Features(NamedTuple):
    """What is known of every readable image of a source, in its order."""

    values: dict[str, Float[np.ndarray, "S ..."]]
    """by pooling: `cls`, `mean` or `pixels` fp32 [S D], `patches` fp16 [S N D]; `3/cls` is of block 3"""
    labels: Int[np.ndarray, "S"]
    """class of each image, -1 unknown"""
    keys: list[str]
    """the source's name for each image"""
    rows: Int[np.ndarray, "S"]
    """each image's place in the source"""
    skipped: list[str]
    """unreadable images: key and reason"""


def extract(
    backbone: ViT,
    source: Source,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    pools: Sequence[Pool] = ("cls", "mean"),
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch: int = 256,
    workers: int = -1,
    progress: Report | None = None,
    layers: Sequence[int] = (),
    cut: Cut | None = None,
    room: Room | None = None,
) -> Features:
    """Encode every readable image of a source by a frozen ViT.

    `cls` is the class token and `mean` the mean of the patch tokens, both after the final norm
    (DINO's `eval_knn.py`; iBOT's avgpool). Those of `layers` are block outputs as they are, without
    the norm (BEiT's linear probe). The backbone leaves with the modes it came with.

    Args:
        backbone: on `device`; called in evaluation mode, without masks and gradients.
        source: images; unreadable ones are skipped and listed.
        size: (h, w) of the center crop, in pixels; a multiple of the patch.
        mean: of the pre-training, one number a channel, for images in [0, 1].
        std: likewise.
        channels: of the decoded image.
        value_range: for 16-bit and float images, what becomes 0 and 255.
        pools: which features.
        device: where to compute.
        precision: bf16 runs under autocast; pooling and features are fp32.
        batch: images a forward pass.
        workers: decoding processes; -1: up to four, none for small sets.
        progress: called after each batch.
        layers: blocks, counted from 1, whose outputs are pooled too, as `3/cls` and `3/mean`.
        cut: instead of the center crop.
        room: makes the arrays; None: in memory.
    Returns:
        one array a pooling, with labels and keys.
    Raises:
        ValueError: nothing could be read, or a feature is not finite.
    """

    def embed(images: Float[Tensor, "B C h w"]) -> dict[str, Tensor]:
        cast = torch.autocast(images.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        with cast:
            if not layers:
                last, blocks = backbone(images), ()
            else:
                *blocks, end = backbone(images, layers=(*(i - 1 for i in layers), -1))
                last = Tokens(backbone.norm(end.prefix), backbone.norm(end.patches), end.grid)
        found = {name: pool(last, name) for name in pools}
        for layer, tokens in zip(layers, blocks, strict=True):
            found |= {f"{layer}/{name}": pool(tokens, name) for name in pools if name != "patches"}
        return found

    loader = crops(source, size, channels, value_range, batch, workers, cut)
    with evaluating(backbone), torch.no_grad():
        return _gather(loader, embed, mean, std, device, progress, room)


def pixels(
    source: Source,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    batch: int = 256,
    workers: int = -1,
    progress: Report | None = None,
    room: Room | None = None,
) -> Features:
    """Take the pixels themselves as features: what any model has to beat.

    The same crop as for a model, shrunk (antialiased) to at most 32 px a side and 768 numbers,
    normalized, flattened. Arguments as for `extract`.
    """
    scale = min(1.0, 32 / max(size), (PIXELS / (channels * size[0] * size[1])) ** 0.5)
    small = tuple(max(1, int(side * scale + 1e-9)) for side in size)

    def embed(images: Float[Tensor, "B C h w"]) -> dict[str, Tensor]:
        if small != tuple(size):
            images = interpolate(images, small, mode="bilinear", antialias=True)
        return {"pixels": images.flatten(1)}

    loader = crops(source, size, channels, value_range, batch, workers)
    return _gather(loader, embed, mean, std, "cpu", progress, room)


def pool(tokens: Tokens, name: Pool) -> Float[Tensor, "B *_"]:
    """Reduce an image's tokens to one vector, in fp32; `patches`: keep them, in fp16."""
    if name == "patches":
        return tokens.patches.half()
    return tokens.prefix[:, 0].float() if name == "cls" else tokens.patches.float().mean(1)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule is as it was (a frozen teacher too)."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _gather(
    loader: DataLoader,
    embed: Callable[[Tensor], dict[str, Tensor]],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    progress: Report | None,
    room: Room | None,
) -> Features:
    offset, spread = (torch.tensor(v, dtype=torch.float32, device=device).view(-1, 1, 1) for v in (mean, std))
    room = room or (lambda name, shape, kind: np.empty(shape, kind))
    values: dict[str, np.ndarray] = {}
    broken: dict[str, list[str]] = {}  # images by feature
    labels, keys, places, skipped, total = [], [], [], [], len(loader.dataset)  # pyright: ignore[reportArgumentType]
    for chunk in loader:
        if chunk.keys:
            images = (chunk.images.to(device, torch.float32) / 255 - offset) / spread
            for name, tensor in embed(images).items():
                value = tensor.cpu().numpy()
                if name not in values:
                    values[name] = room(name, (total, *value.shape[1:]), value.dtype)
                values[name][len(keys) : len(keys) + len(value)] = value
                if wrong := broken_images(value, chunk.keys):
                    broken.setdefault(name, []).extend(wrong)
        labels += chunk.labels
        keys += chunk.keys
        places += chunk.rows
        skipped += chunk.bad
        if progress is not None:
            progress(len(keys) + len(skipped), total)
    if not keys:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise ValueError(f"none of {total} images could be read{first}; check the path and the files")
    for name, images in broken.items():
        raise ValueError(not_finite(name, images, len(keys)))
    values = {name: rows[: len(keys)] for name, rows in values.items()}
    return Features(values, np.array(labels, np.int64), keys, np.array(places, np.int64), skipped)


def broken_images(values: Float[np.ndarray, "B *d"], keys: list[str]) -> list[str]:
    """Names of the images whose features are NaN or infinite."""
    whole = np.isfinite(values).reshape(len(values), -1).all(1)
    return [keys[i] for i in np.flatnonzero(~whole)]


def not_finite(name: str, images: list[str], total: int) -> str:
    """What to say of them."""
    return (
        f"{name} features of {len(images)} of {total} images are NaN or infinite, first {images[0]}: "
        "the weights diverged or overflow in half precision; use an earlier checkpoint (RUN@STEP) or fp32"
    )
