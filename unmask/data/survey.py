"""A first look at the data, for recipes that size themselves: how large, how bright, how varied."""

import statistics

from ..randomness import shuffled_index
from .decode import decode
from .sources import BadImage, Source, measure_mean_std


def survey(
    source: Source,
    *,
    seed: int,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    n: int = 200,
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Measure the median shorter side over `n` images, and mean and deviation over 2,000.

    Returns:
        side in pixels, mean and std in [0, 1], one value a channel.
    Raises:
        ValueError: no image can be read.
    """
    mean, std = measure_mean_std(source, seed=seed, channels=channels, value_range=value_range)
    sides = []
    for i in range(min(n, len(source))):
        try:
            image = decode(source[shuffled_index(i, len(source), seed, 0)], channels=channels, value_range=value_range)
        except BadImage:
            continue
        sides.append(min(image.shape[1:]))
    # the first images of the shuffled order may be the unreadable ones; some image was readable
    side = int(statistics.median(sides)) if sides else 224
    return side, tuple(round(m, 6) for m in mean), tuple(round(s, 6) for s in std)
