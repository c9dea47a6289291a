"""Activation recomputation: keep a block's input, make the rest again when its gradient is due.

Memory for time (Chen et al. 2016, arXiv:1604.06174): of a step's activations only the input of each
block stays, and one block's own while its gradient is computed; the forward pass of the blocks is
made twice, so a step takes about a third longer. Loss and gradients are the same bits: the second
pass draws the same drop path.
"""

from functools import partial

from torch.utils.checkpoint import checkpoint

from .methods.base import Method


def recompute(method: Method, on: bool) -> None:
    """Switch recomputation of a method's blocks on or off, in place.

    Before `parallel.wrap` and before blocks are compiled: FSDP2's hooks then lie outside, so that
    weights are gathered once for the second pass and for the gradients.
    """
    for block in method.blocks():
        block.__dict__.pop("forward", None)  # off: the class's own
        if on:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
