"""Kernels of our own for what lies between matrix products, on a CPU in bf16: one pass where PyTorch makes several.

`block.c`, `losses.c`, `images.c` and `weights.c` have them, `build.py` builds and loads them, the module of the same
name declares them to Python, with their gradients.
"""

from .block import Branch, Kept, add, add_norm, attend, gelu, kept, norm
from .build import Unavailable, library, ready, switch, which, why_not
from .images import can_normalize, normalize
from .losses import Distilled, Found, at_once, distill, pixel_error, sample, sample_backward
from .weights import AdamW, norms, project, scale

__all__ = [
    "AdamW", "Branch", "Distilled", "Found", "Kept", "Unavailable", "add", "add_norm", "at_once", "attend",
    "can_normalize", "distill", "gelu", "kept", "library", "norm", "normalize", "norms", "pixel_error", "project",
    "ready", "sample", "sample_backward", "scale", "switch", "which", "why_not",
]  # fmt: skip
