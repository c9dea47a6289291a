"""What the tests of training share: sixteen-pixel images and a MAE that trains in milliseconds."""

import dataclasses

import numpy as np
import torch

from unmask.config import DataConfig, OptimConfig, RunConfig
from unmask.data.record import BadImage, Record
from unmask.methods.mae import MAEConfig
from unmask.parallel import World
from unmask.train import prepare, train
from unmask.views import View
from unmask.vit import ViTConfig

ALONE = World(0, 1, torch.device("cpu"))

TINY = MAEConfig(
    vit=ViTConfig(image_size=16, patch=4, width=32, depth=2, heads=2, pos_embed="sincos", init="mae"),
    views=(View(16, scale=(0.2, 1.0)),),
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
)


class Images:
    """n smooth random images, 20 px; those listed in `bad` cannot be read."""

    name, classes, labels = "toys", None, None

    def __init__(self, n=24, bad=()):
        self.n, self.bad = n, bad

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i in self.bad:
            raise BadImage(f"image-{i}", "cut short")
        coarse = np.random.default_rng(i).integers(0, 256, (5, 5, 3), np.uint8)
        return Record(coarse.repeat(4, 0).repeat(4, 1), -1, f"image-{i}")


def config(out, *, steps=4, method=TINY, **changes):
    """A run of 8 images a step, in one process, saved at its end."""
    optim = {k: changes.pop(k) for k in list(changes) if k in {f.name for f in dataclasses.fields(OptimConfig)}}
    defaults = {
        "batch": 8, "device_batch": 8, "workers": 0, "epochs": None, "precision": "fp32", "compile": "off",
        "device": "cpu", "save_every": "1000", "log_every": 1, "data": DataConfig(train="toys"),
    }  # fmt: skip
    optimizer = OptimConfig(**{"base_lr": 1e-2, "base_batch": None, "warmup_epochs": 1.0} | optim)
    return RunConfig(recipe="toy", method=method, optim=optimizer, steps=steps, out=str(out), **(defaults | changes))


def run(out, *, source=None, world=ALONE, **changes):
    """Train, or go on training; returns the Run."""
    evaluate = changes.pop("evaluate", None)
    settled, method = prepare(config(out, **changes), world)
    return train(settled, source or Images(), world, method, evaluate=evaluate)


def same(a, b):
    """Whether two nested dictionaries of tensors are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b)
