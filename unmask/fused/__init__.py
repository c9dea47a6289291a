"""Kernels of our own for compiled blocks on a GPU in bf16, by Triton: where the compiler's are slow or several.

`attention.py` and `gelu.py` are used where `usable` says so; everywhere else a block uses PyTorch's.
"""

from importlib.util import find_spec

import torch

from .attention import attend, fits
from .gelu import gelu

__all__ = ["attend", "fits", "gelu", "usable"]
HAVE_TRITON = find_spec("triton") is not None
"""it is part of PyTorch for a GPU on Linux"""


def usable(x: torch.Tensor) -> bool:
    """Whether products of `x` are in bf16, on a GPU, and compiled: then Triton and what it needs are there."""
    if not HAVE_TRITON or x.device.type != "cuda" or not torch.compiler.is_compiling():
        return False
    return torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
