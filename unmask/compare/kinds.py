"""Which analysis and which picture applies to which kind of method: the only place that knows."""

from typing import Literal, NamedTuple

from ..config import MethodConfig
from ..methods.beit import BEiTConfig
from ..methods.classify import ClassifyConfig
from ..methods.dvae import DVAEConfig
from ..methods.ibot import IBOTConfig
from ..methods.mae import MAEConfig

Kind = Literal["mae", "beit", "ibot", "dino", "supervised", "dvae"]


class Applies(NamedTuple):
    """What a picture or an analysis can be asked of."""

    kinds: tuple[Kind, ...]
    labelled: bool = False
    """it needs labels"""
    alone: bool = False
    """one model a figure; otherwise all share one"""
    moving: bool = False
    """it goes on training, from a checkpoint whose learning rate is not nearly 0"""


VITS: tuple[Kind, ...] = ("mae", "beit", "ibot", "dino", "supervised")
TEACHERS: tuple[Kind, ...] = ("ibot", "dino")

ANALYSES: dict[str, Applies] = {
    "attention-distance": Applies(VITS),
    "attention-nmi": Applies(VITS),
    "amplitude": Applies(VITS),
    "bands": Applies(VITS, labelled=True),
    "error-spectrum": Applies(("mae", "dvae")),
    "range": Applies(("mae", "beit", "ibot")),  # DINO hides nothing
    "targets": Applies(("beit", "dvae", "ibot", "dino"), labelled=True),
    "cka": Applies(VITS),
    "teacher-student": Applies(TEACHERS, labelled=True, alone=True),
    "averaging": Applies(TEACHERS, labelled=True, alone=True, moving=True),
    "target-noise": Applies(TEACHERS, alone=True, moving=True),
    "flatness": Applies(TEACHERS),  # losses of other methods do not compare
    "collapse": Applies(TEACHERS),
}
"""A1 to A8, B1 to B4, B6"""

PICTURES: dict[str, Applies] = {
    "reconstruction": Applies(("mae",)),
    "tokens": Applies(("beit", "dvae")),
    "attention": Applies(VITS),
    "patches": Applies(VITS),
    "augmentations": Applies(VITS),
    "curves": Applies((*VITS, "dvae")),
}
"""each of one model"""


def kind_of(method: MethodConfig) -> Kind:
    """The kind of a method.

    Raises:
        ValueError: a method of one's own, of which no analysis is known.
    """
    if isinstance(method, IBOTConfig):
        return "ibot" if method.masks else "dino"
    kinds: dict[type[MethodConfig], Kind] = {
        MAEConfig: "mae", BEiTConfig: "beit", ClassifyConfig: "supervised", DVAEConfig: "dvae",
    }  # fmt: skip
    for config, kind in kinds.items():
        if isinstance(method, config):
            return kind
    raise ValueError(f"{type(method).__name__} is none of {', '.join((*VITS, 'dvae'))}; compare knows these")
