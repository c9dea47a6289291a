"""What every dialect is read into: a ViT's weights by our names, and all that is known about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..framing import PLAIN, Frame
from ..vit import ViT, ViTConfig

State = dict[str, Tensor]
"""name -> tensor"""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""input mean and deviation of MAE, iBOT and DINO"""
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""of BEiT and of Google's ViT"""


class About(NamedTuple):
    """What is known of tensors beside themselves."""

    wrapper: str = ""
    """the entry of the file that held them: `model`, `teacher`; empty: none did"""
    args: Mapping[str, Any] = {}
    """settings of the program that trained, where it saved them"""
    config: Mapping[str, Any] = {}
    """config.json beside the file"""
    processor: Mapping[str, Any] = {}
    """preprocessor_config.json beside the file"""
    heads: int | None = None
    """attention heads that the user gave"""


@dataclass(frozen=True)
class Loaded:
    """Weights that were read from a file, in fp32 on the CPU."""

    looks: str
    """what the file looks like, for people: `an MAE checkpoint with its decoder`"""
    vit: ViTConfig
    """the architecture, from the tensors and the dialect"""
    state: State
    """all of `vit.ViT(config)`, by its names"""
    beside: State = field(default_factory=dict)
    """what comes with the ViT, by the names of its method: `decoder.*` (MAE), `lm_head.*` (BEiT);
    `student.*`, `teacher.*`, `center`, `patch_center` (iBOT, DINO)"""
    mean: tuple[float, ...] = IMAGENET[0]
    """of the input, subtracted from images in [0, 1]"""
    std: tuple[float, ...] = IMAGENET[1]
    range: tuple[float, float] | None = None
    """values of 16-bit or float images that are black and white, as in DataConfig"""
    decoder_heads: int = 16
    """attention heads of an MAE's decoder, which its tensors do not tell; 16 in all published ones, 0: unknown"""
    classes: tuple[str, ...] = ()
    """names of the head's outputs, in their order, where they are known"""
    norm_pixels: bool | None = None
    """whether an MAE's decoder predicts pixels normalized patch by patch; None: nothing tells"""
    frame: Frame = PLAIN
    """evaluation crop that a fine-tuned head was judged by"""
    notes: tuple[str, ...] = ()
    """what was taken for granted, one line each"""

    def build(self) -> ViT:
        """Make the network, in evaluation mode."""
        vit = ViT(self.vit)
        vit.load_state_dict(self.state)
        return vit.eval()
