"""A tiny iBOT, its batches and its steps: what the tests of iBOT share."""

import dataclasses

import torch

from unmask.budget import synthetic_batch
from unmask.config import DataConfig, OptimConfig, RunConfig
from unmask.masks import BlockMask
from unmask.methods.base import Progress
from unmask.methods.ibot import IBOTConfig
from unmask.optim import build_optimizer
from unmask.parallel import World
from unmask.train import update
from unmask.views import View
from unmask.vit import ViTConfig

CPU = World(0, 1, torch.device("cpu"))
VIT = ViTConfig(image_size=16, patch=4, width=16, depth=2, heads=2, pos_resize="factor")
SMALL = IBOTConfig(
    vit=VIT,
    views=(View(16), View(16), View(8, count=3)),
    masks=(BlockMask(((0.3, 0.2),), smallest=1),) * 2,
    prototypes=24,
    head_width=20,
    bottleneck=8,
    momentum=0.9,
)
DINO = dataclasses.replace(SMALL, masks=())
OPTIM = OptimConfig(
    base_lr=1e-3,
    base_batch=None,
    schedule="constant",
    weight_decay=0.04,
    weight_decay_end=0.4,
    clip=3.0,
    clip_by="tensor",
)


def made(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return config.build()


def batch_for(config=SMALL, count=4):
    return synthetic_batch(config, DataConfig(), count, torch.device("cpu"))


def run_config(config=SMALL, batch=4):
    return RunConfig("test", config, DataConfig(), OPTIM, batch=batch, precision="fp32")


def stepped(method, config, steps, of=12, batch=4, start=0):
    """Train a few steps of a run; return the last Step."""
    optimizer = build_optimizer(method.parameter_groups(), OPTIM)
    for step in range(start, start + steps):
        batches = [batch_for(config, batch)]
        result = update(method, optimizer, batches, Progress(step, of, 4.0), run_config(config, batch), CPU)
    return result
