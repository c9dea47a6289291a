"""From a pre-trained ViT's weights to those that its fine-tuning begins with.

What the official scripts do before `load_state_dict`: the head and the mask token go, positions are resized,
a shared relative table is copied into every block, and a classifier that normalizes after pooling starts from a
fresh fc_norm, not from the pre-trained norm.
"""

from dataclasses import replace

from torch import Tensor

from ..vit import ViT, ViTConfig
from .adapt import fit
from .loaded import Loaded


def finetuned_from(state: dict[str, Tensor], old: ViTConfig, vit: ViT) -> list[str]:
    """Start a classifier from pre-trained weights, in place.

    Args:
        state: of a ViT of configuration `old`.
        vit: the classifier; widths and depths must be those of `old`, its image size need not.
    Returns:
        the names that begin afresh: the head, and a norm that `old` does not have.
    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    headless = {name: value for name, value in state.items() if not name.startswith("head.")}
    taken, _ = fit(Loaded("the pre-trained network", replace(old, classes=0), headless), vit.config)
    own = vit.state_dict()
    fresh = sorted(own.keys() - taken.keys())
    wrong = sorted(taken.keys() - own.keys()) + [n for n in fresh if not n.startswith(("head.", "fc_norm.", "norm."))]
    wrong += [n for n in taken.keys() & own.keys() if taken[n].shape != own[n].shape]
    if wrong:
        raise ValueError(f"fine-tuning: {wrong[0]} and {len(wrong) - 1} more tensors do not fit the classifier")
    vit.load_state_dict(taken, strict=False)
    return fresh
