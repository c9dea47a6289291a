"""Our step, by the very functions that `unmask pretrain` goes through."""

from dataclasses import replace
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from unmask import parallel
from unmask.allocator import keep_memory
from unmask.compilation import compile_blocks, optimizer_of
from unmask.config import DataConfig, RunConfig
from unmask.methods.base import Batch
from unmask.methods.beit import BEiTConfig
from unmask.parallel import World
from unmask.step import Step, share_hidden, update
from unmask.train import prepare

from .cases import AT, Case


class OurStep:
    """`step.update` on one batch; each call is the next step, so that drop path draws anew."""

    def __init__(
        self, engine: nn.Module, optimizer: Optimizer, batches: list[Batch], config: RunConfig, world: World
    ) -> None:
        self.engine, self.optimizer, self.batches, self.config, self.world = engine, optimizer, batches, config, world
        self.at = AT

    def __call__(self) -> Step:
        done = update(self.engine, self.optimizer, self.batches, self.at, self.config, self.world)
        self.at = self.at._replace(step=self.at.step + 1)
        return done


def make(
    given: Case,
    precision: str,
    kernels: Literal["own", "torch", "compiled", "compiled by block"] = "own",
    tokens: Literal["fp32", "bf16"] = "fp32",
) -> OurStep:
    """Our step of a case.

    Args:
        given: what is trained.
        precision: bf16 or fp32.
        kernels: on a CPU in bf16, own: those of `unmask/passes`; compiled: a stack of blocks by torch.compile.
        tokens: the precision of BEiT's tokens.
    """
    keep_memory()
    world = parallel.start(given.device)
    if tokens != "fp32":
        assert isinstance(given.method, BEiTConfig)
        given = replace(given, method=replace(given.method, tokenizer_precision=tokens))
    config = RunConfig(
        recipe=given.name,
        method=given.method,
        data=DataConfig(),
        optim=given.optim,
        batch=given.images,
        device_batch=given.images,
        epochs=None,
        steps=AT.steps,
        precision="bf16" if precision == "bf16" else "fp32",
        compile="auto" if kernels == "own" else "off",
    )
    config, method = prepare(config, world, given.build)
    engine = parallel.wrap(method, world, config.parallel)
    optimizer = optimizer_of(method, config, world)
    if kernels in ("compiled", "compiled by block"):
        compile_blocks(method, whole=kernels == "compiled")
    engine.train()
    batches = [given.batch()]
    share_hidden(batches, world)
    return OurStep(engine, optimizer, batches, config, world)
