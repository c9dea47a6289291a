"""What runs a block: PyTorch's kernels, torch.compile, or on a CPU kernels of our own; and when."""

from . import passes
from .config import RunConfig
from .methods.base import Method
from .parallel import World

COMPILE_PAYS = 1000
"""optimizer steps from which a minute of compilation is worth it"""


def compile_blocks(method: Method) -> None:
    """Compile a method block by block, in place.

    To Dynamo all blocks are one function, of which it keeps few versions: one is needed for each rate of drop path,
    length of sequence, set of tokens that are read and mode of gradients. Beyond them a block would run uncompiled.
    """
    import torch._dynamo as dynamo  # takes seconds

    blocks = list(method.blocks())
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 4 * len(blocks))
    for block in blocks:
        block.compile()


def lacks_kernels(config: RunConfig, world: World) -> str | None:
    """What to say of a run that would use kernels of our own (`passes`) and has none."""
    if config.compile != "auto" or config.precision != "bf16" or world.device.type != "cpu":
        return None
    why = passes.why_not()
    return why and f"PyTorch's kernels alone, which take a tenth longer, as ours cannot be built: {why}"


def compiles(config: RunConfig, world: World, steps: int) -> bool:
    """Compile when asked; by default on a GPU, for runs that repay it: on a CPU our kernels gain more."""
    if config.compile != "auto":
        return config.compile == "on"
    return world.device.type == "cuda" and steps >= COMPILE_PAYS
