"""What the tests of analyses share: labelled images in memory, and tiny trained runs of every method."""

import dataclasses

import ibot_toys
import numpy as np
import torch
import toys

from unmask.analyze.subject import Ask, Subject
from unmask.data.record import Record
from unmask.masks import BlockMask
from unmask.methods.beit import BEiTConfig
from unmask.methods.codec import CodecConfig
from unmask.methods.dvae import DVAEConfig
from unmask.models import open_subjects, vit_of
from unmask.views import View
from unmask.vit import ViTConfig

CODEC = CodecConfig(vocab=16, stride=4, width=8, groups=3, blocks=1, code_width=8)
BEIT_VIT = ViTConfig(
    image_size=16, patch=4, width=16, depth=2, heads=2, pos_embed="none", rel_pos="shared", mask_token=True, init="beit"
)
METHODS = {
    "mae": toys.TINY,
    "dvae": DVAEConfig(codec=CODEC, views=(View(16, twin=16),)),
    "beit": BEiTConfig(
        vit=BEIT_VIT, views=(View(16, twin=16),), masks=(BlockMask(((0.4, 0.0),), smallest=1),), tokenizer=CODEC
    ),
    "ibot": dataclasses.replace(ibot_toys.SMALL, momentum_end=0.9),
    "dino": ibot_toys.DINO,
}


class Labelled:
    """n smooth random images, 20 px, of two classes that differ in brightness."""

    name, classes = "labelled", None

    def __init__(self, n=24):
        self.labels = np.arange(n) % 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        coarse = np.random.default_rng(i).integers(0, 128, (5, 5, 3), np.uint8) + np.uint8(127 * (i % 2))
        return Record(coarse.repeat(4, 0).repeat(4, 1), int(self.labels[i]), f"image-{i}")


def run(path, method, steps=4, **changes):
    """Train a tiny run of a method."""
    return toys.run(path, source=Labelled(), method=METHODS[method], steps=steps, **changes)


def fresh(method):
    """A method with its first weights, opened without a run."""
    torch.manual_seed(0)
    built = METHODS[method].build().eval()
    return Subject(method, built, None if method == "dvae" else vit_of(built), toys.config("x", method=METHODS[method]))


def subject(run, spec=""):
    """Open a run, as `unmask show` does."""
    (opened,) = open_subjects([f"{run.path}{spec}"], Labelled())
    return opened


def asked(**changes):
    """A small request."""
    return dataclasses.replace(Ask(Labelled(), count=12), **changes)


def drawn(finding):
    """Render the figure, where a warning would be an error, and return the numbers."""
    finding.figure.canvas.draw()
    return finding.numbers
