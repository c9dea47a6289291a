"""What runs a block: PyTorch's kernels, torch.compile, or on a CPU kernels of our own; and when."""

from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from . import passes
from .blocks import Block, Compilable, Stack
from .config import RunConfig
from .methods.base import Method
from .optim import build_optimizer
from .parallel import World, hardware_precision

COMPILE_PAYS = 1000
"""optimizer steps from which a minute of compilation is worth it"""


def compile_blocks(method: Method, whole: bool) -> None:
    """Compile a method's blocks for training, in place, and what else of it is worth it (`Compilable`).

    Args:
        method: before its first step.
        whole: a stack of blocks as one function, which is faster and takes longer to compile; otherwise block by
            block: gradients of a block are there, and exchanged between processes, while those of others are made.
    """
    import torch._dynamo as dynamo  # takes seconds

    # to Dynamo all blocks are one function, of which it keeps few versions: beyond them they would run uncompiled
    blocks = list(method.blocks())
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 4 * len(blocks))
    parts = [part for part in method.modules() if isinstance(part, Compilable) and not isinstance(part, Block)]
    parts = [part for part in parts if whole or not isinstance(part, Stack)]
    together = {block for part in parts if isinstance(part, Stack) for block in part}
    for part in (*parts, *(block for block in blocks if block not in together)):
        part.compile()


def optimizer_of(method: Method, config: RunConfig, world: World) -> Optimizer:
    """The optimizer of a run; where blocks go through kernels of our own, it works with them.

    Gradients of blocks' weights stay in bf16 then, as products give them, if a step has one micro-batch and nobody to
    add them up with: what crops of several sizes give is added in bf16, as autocast does.
    """
    here = config.precision == "bf16" and world.device.type == "cpu" and world.size == 1
    plain = config.optim.name == "adamw" and all(
        p.is_contiguous() and p.dtype == torch.float32 for p in method.parameters()
    )
    optimizer = build_optimizer(method.parameter_groups(), config.optim, own=here and plain and passes.ready())
    if isinstance(optimizer, passes.AdamW) and config.batch == config.device_batch:
        blocks = [block for block in method.blocks() if isinstance(block, Block)]
        layers = [layer for b in blocks for layer in (b.attn.qkv, b.attn.proj, b.mlp.fc1, b.mlp.fc2)]
        optimizer.small_gradients([layer.weight for layer in layers if layer.weight.requires_grad])
    return optimizer


def kernel_notes(config: RunConfig, world: World, last: Sequence[str]) -> list[str]:
    """What to say of the kernels that a run will use: that ours are lacking, that they are not the last start's.

    Args:
        config: of the run.
        world: the processes.
        last: `run.last_kernels`.
    """
    if config.precision != "bf16" or world.device.type != "cpu":
        return []
    said, why = [], passes.why_not()
    if hardware_precision(world.device) == "fp32":
        said.append("this processor multiplies no bf16: --precision fp32 takes a half to a third of the time")
    if config.compile == "auto" and why:
        said.append(f"PyTorch's kernels alone, which take a tenth longer, as ours cannot be built: {why}")
    if len(set(last)) > 1:
        change = f"kernels were {last[0]}, and are {last[1]} now"
        said.append(f"{change}: from here on numbers differ by rounding from a run whose kernels stayed")
    return said


def compiles(config: RunConfig, world: World, steps: int) -> bool:
    """Compile when asked; by default on a GPU, for runs that repay it: on a CPU our kernels gain more."""
    if config.compile != "auto":
        return config.compile == "on"
    return world.device.type == "cuda" and steps >= COMPILE_PAYS
