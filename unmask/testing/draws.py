"""The official loaders' own random numbers, dealt to our mask policies."""

import math
import random
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..masks import MaskPolicy
from ..randomness import key


class PythonDraws(np.random.Generator):
    """A generator whose numbers are those of Python's `random` and of NumPy's legacy shuffle."""

    def __init__(self, seed: int):
        super().__init__(np.random.PCG64(0))
        self.python = random.Random(seed)
        self.legacy = np.random.RandomState(seed)

    def random(self, *args: Any, **kwargs: Any) -> Any:
        return self.python.random()

    def integers(self, low: Any, *args: Any, **kwargs: Any) -> Any:
        return self.python.randrange(low)

    def shuffle(self, x: Any, axis: int = 0) -> None:
        self.legacy.shuffle(x)


def population(policy: MaskPolicy, grid: tuple[int, int], golden: Float[Tensor, "gh gw"], config: dict) -> float:
    """How far our generator's masks are from the official frequencies, in multiples of what chance allows.

    Draws 2,000 masks and takes the bound 4 sqrt(p (1 - p) (1/n + 1/m)) of `goldens/README`, which 99 % of
    the places must keep: the ratio at the 99th percentile.
    """
    n, m = 2000, config["population_draws"]
    drawn = np.mean([policy(grid, key(0, "golden", *grid, i)) for i in range(n)], axis=0)
    p = golden.double()
    bound = 4 * (p * (1 - p)).sqrt() * math.sqrt(1 / n + 1 / m)
    difference = (torch.from_numpy(drawn) - p).abs()
    ratios = torch.where(difference == 0, 0.0, difference / bound.clamp(min=1e-12))
    return float(ratios.flatten().quantile(0.99, interpolation="lower"))
