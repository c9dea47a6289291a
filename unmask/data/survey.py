"""A first look at the data: how large, how bright, how varied, for recipes that size themselves; and of which kinds."""

import io
import statistics
from typing import NamedTuple

from ..randomness import shuffled_index
from .decode import decode
from .record import BadImage, Record, Source
from .sources import measure_mean_std

LOOKED = 64
"""images whose headers tell of which kinds a source is"""


class Kinds(NamedTuple):
    """What there is among the images that were looked at."""

    jpeg: bool
    deep: bool
    """values of more than 8 bits"""


def kinds(source: Source, *, seed: int, n: int = LOOKED) -> Kinds:
    """Look at the headers of `n` images, chosen by the seed; those that cannot be had are of no kind."""
    seen = []
    for i in range(min(n, len(source))):
        try:
            seen.append(_kinds_of(source[shuffled_index(i, len(source), seed, 0)]))
        except BadImage:
            continue
    return Kinds(any(each.jpeg for each in seen), any(each.deep for each in seen))


def _kinds_of(record: Record) -> Kinds:
    data = record.data
    if not isinstance(data, bytes):  # ready pixels are uint8
        return Kinds(jpeg=False, deep=False)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        import tifffile

        try:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                return Kinds(jpeg=False, deep=max(file.pages.first.bitspersample, 1) > 8)
        except Exception as error:  # codecs raise a dozen kinds on broken bytes
            raise BadImage(record.key, str(error)) from error
    return Kinds(jpeg=data[:3] == b"\xff\xd8\xff", deep=data[:4] == b"\x89PNG" and data[24:25] == b"\x10")


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
