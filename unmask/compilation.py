"""torch.compile, block by block: when a run compiles, and how."""

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


def compiles(config: RunConfig, world: World, steps: int) -> bool:
    """Compile when asked; by default on a GPU, for runs that repay it: on a CPU it gains a few percent."""
    if config.compile != "auto":
        return config.compile == "on"
    return world.device.type == "cuda" and steps >= COMPILE_PAYS
