"""Features once: the same unmasked forward, pooling and crop for training and test images.

Most disappointments with frozen features are protocol mistakes, so there is one door: a center
crop, evaluation mode, no mask, the final norm, and pooling by name. It is streamed: a large set costs
memory for its features, never for its pixels.
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
from .crops import crops

Pool = Literal["cls", "mean"]
Report = Callable[[int, int], None]
"""progress(images done, images in all)"""

PIXELS = 768
"""features of a raw image at most: 16 x 16 x 3; four times as many take minutes to fit and are worth no more"""


class Features(NamedTuple):
    """What is known of every readable image of a source, in its order."""

    values: dict[str, Float[np.ndarray, "S _"]]
    """fp32, by pooling: `cls`, `mean`, or `pixels`"""
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
) -> Features:
    """Encode every readable image of a source by a frozen ViT.

    `cls` is the class token and `mean` the mean of the patch tokens, both after the final norm
    (DINO's `eval_knn.py`; iBOT's avgpool). The backbone leaves with the modes it came with.

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
    Returns:
        one fp32 array [S D] a pooling, with labels and keys.
    Raises:
        ValueError: nothing could be read, or a feature is not finite.
    """

    def embed(images: Float[Tensor, "B C h w"]) -> dict[str, Tensor]:
        cast = torch.autocast(images.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        with cast:
            tokens = backbone(images)
        return {name: pool(tokens, name) for name in pools}

    loader = crops(source, size, channels, value_range, batch, workers)
    with evaluating(backbone), torch.no_grad():
        return _gather(loader, embed, mean, std, device, progress)


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
    return _gather(loader, embed, mean, std, "cpu", progress)


def pool(tokens: Tokens, name: Pool) -> Float[Tensor, "B D"]:
    """Reduce an image's tokens to one vector, in fp32."""
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
) -> Features:
    offset, spread = (torch.tensor(v, dtype=torch.float32, device=device).view(-1, 1, 1) for v in (mean, std))
    values: dict[str, np.ndarray] = {}
    labels, keys, places, skipped, total = [], [], [], [], len(loader.dataset)  # pyright: ignore[reportArgumentType]
    for chunk in loader:
        if chunk.keys:
            images = (chunk.images.to(device, torch.float32) / 255 - offset) / spread
            for name, value in embed(images).items():
                rows = values.setdefault(name, np.empty((total, value.shape[1]), dtype=np.float32))
                rows[len(keys) : len(keys) + len(value)] = value.cpu().numpy()
        labels += chunk.labels
        keys += chunk.keys
        places += chunk.rows
        skipped += chunk.bad
        if progress is not None:
            progress(len(keys) + len(skipped), total)
    if not keys:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise ValueError(f"none of {total} images could be read{first}; check the path and the files")
    values = {name: rows[: len(keys)] for name, rows in values.items()}
    check_finite(values, keys)
    return Features(values, np.array(labels, np.int64), keys, np.array(places, np.int64), skipped)


def check_finite(values: dict[str, np.ndarray], keys: list[str]) -> None:
    """Refuse features that are NaN or infinite; names the first image."""
    for name, array in values.items():
        broken = np.flatnonzero(~np.isfinite(array).all(1))
        if len(broken):
            raise ValueError(
                f"{name} features of {len(broken)} of {len(keys)} images are NaN or infinite, "
                f"first {keys[broken[0]]}: the weights diverged or overflow in bf16; "
                "use an earlier checkpoint (RUN@STEP) or fp32"
            )
