"""What a network with a head says of images: probabilities, once, streamed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from ..data.record import Source
from ..framing import PLAIN, Frame
from ..vit import ViT
from .crops import CenterCut, crops
from .features import Report, evaluating


class Classified(NamedTuple):
    """Every readable image of a source, in its order."""

    probabilities: Float[np.ndarray, "S K"]
    labels: Int[np.ndarray, "S"]
    """as the source numbers them, -1 unknown"""
    keys: list[str]
    rows: Int[np.ndarray, "S"]
    """each image's place in the source"""
    skipped: list[str]
    """unreadable images: key and reason"""


def classify(
    vit: ViT,
    source: Source,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    value_range: tuple[float, float] | None = None,
    frame: Frame = PLAIN,
    device: torch.device | str = "cpu",
    batch: int = 256,
    workers: int = -1,
    progress: Report | None = None,
) -> Classified:
    """Classify every readable image by its center crop; the network leaves with the modes it came with.

    Args:
        vit: with a head, on `device`; its configuration gives size and channels of the crop.
        source: images, with or without labels; unreadable ones are skipped and listed.
        mean, std: of the training, one number a channel, for images in [0, 1].
        value_range: for 16-bit and float images, what becomes 0 and 255.
        frame: the crop, where it is not the usual one.
        device: where to compute, in fp32.
        batch: images a forward pass.
        workers: decoding processes; -1: up to four, none for small sets.
        progress: called after each batch.
    Raises:
        ValueError: no image can be read, or a score is not finite.
    """
    config, cut = vit.config, CenterCut(vit.config.image_hw, frame)
    offset, spread = (torch.tensor(v, dtype=torch.float32, device=device).view(-1, 1, 1) for v in (mean, std))
    parts, labels, keys, rows, skipped = [], [], [], [], []
    with evaluating(vit), torch.no_grad():
        for chunk in crops(source, config.image_hw, config.channels, value_range, batch, workers, cut):
            if chunk.keys:
                images = (chunk.images.to(device, torch.float32) / 255 - offset) / spread
                parts.append(vit.logits(images).float().softmax(1).cpu().numpy())
            labels += chunk.labels
            keys += chunk.keys
            rows += chunk.rows
            skipped += chunk.bad
            if progress is not None:
                progress(len(keys) + len(skipped), len(source))
    if not keys:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise ValueError(f"none of {len(source)} images could be read{first}; check the path and the files")
    probabilities = np.concatenate(parts)
    if not np.isfinite(probabilities).all():
        raise ValueError("the classifier's scores are NaN or infinite: its weights diverged; train with a lower --lr")
    return Classified(probabilities, np.array(labels, np.int64), keys, np.array(rows, np.int64), skipped)
