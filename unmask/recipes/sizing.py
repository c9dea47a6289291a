"""What self-sizing recipes look at, and the rules by which they size themselves."""

from typing import Literal, NamedTuple

from ..config import DataConfig


class Facts(NamedTuple):
    """What a self-sizing recipe looks at."""

    images: int = 1_281_167
    """training images"""
    side: int = 224
    """median shorter side of an image, in pixels"""
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """of the training images, in [0, 1]"""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    gpu: bool = False
    classes: int = 1000
    """of the labels, where there are any"""


def fitting_size(side: int) -> tuple[int, int]:
    """Image and patch size for images of this shorter side: multiples of 32, at least 64 patches.

    Example:
        >>> fitting_size(28), fitting_size(64), fitting_size(96), fitting_size(500)
        ((32, 4), (64, 8), (96, 12), (224, 16))
    """
    size = min(max(side // 32 * 32, 32), 224)
    return size, min(size // 8, 16)


def fitting_model(facts: Facts) -> Literal["nano", "micro", "tiny", "small", "base"]:
    """What trains in reasonable time: on a CPU nano or micro; on a GPU by the number of images."""
    if not facts.gpu:
        return "nano" if facts.side < 64 else "micro"
    return "base" if facts.images >= 300_000 else "small" if facts.images >= 20_000 else "tiny"


def fitting_epochs(facts: Facts) -> float:
    """Epochs that show a CPU half a million images and a GPU 100 million, between 10 and 1600."""
    return float(min(max(round((100e6 if facts.gpu else 5e5) / facts.images), 10), 1600))


def measured(facts: Facts) -> DataConfig:
    """The data's own mean and deviation."""
    return DataConfig(channels=facts.channels, mean=facts.mean, std=facts.std)


def published(facts: Facts) -> DataConfig:
    """ImageNet's mean and deviation, as the papers have it; those of the data where it is not RGB."""
    return DataConfig() if facts.channels == 3 else measured(facts)
