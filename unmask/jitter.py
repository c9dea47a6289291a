"""Color jitter: its ranges, and what is drawn from them."""

from dataclasses import dataclass

import numpy as np

from .randomness import between


@dataclass(frozen=True)
class Jitter:
    """Random brightness, contrast, saturation and hue, in random order (torchvision's ColorJitter)."""

    brightness: float = 0.4
    """factor drawn from 1 - b ... 1 + b"""
    contrast: float = 0.4
    """factor about the mean gray level, 1 - c ... 1 + c"""
    saturation: float = 0.4
    """factor about the pixel's gray level, 1 - s ... 1 + s; iBOT 0.2"""
    hue: float = 0.0
    """turn of the color circle, -h ... h, h <= 0.5; iBOT 0.1"""
    p: float = 1.0
    """probability; BEiT 1, iBOT 0.8"""


def draw_jitter(
    jitter: Jitter | None, rng: np.random.Generator
) -> tuple[tuple[int, ...], tuple[float, float, float, float]]:
    """Draw the order of an image's operations and their factors; none, and neutral ones, where there is no jitter.

    Source: torchvision's ColorJitter.get_params.

    Returns:
        0 brightness, 1 contrast, 2 saturation, 3 hue, in their order; and the factor of each.
    """
    if jitter is None or rng.random() >= jitter.p:
        return (), (1.0, 1.0, 1.0, 0.0)
    spans = (jitter.brightness, jitter.contrast, jitter.saturation)
    b, c, s = (between(max(0.0, 1 - span), 1 + span, rng) for span in spans)
    hue = between(-jitter.hue, jitter.hue, rng)
    active = (*spans, jitter.hue)
    return tuple(k for k in rng.permutation(4).tolist() if active[k] > 0), (b, c, s, hue)
