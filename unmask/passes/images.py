"""A batch of images on its way to a ViT, in one pass."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .build import addresses, library, ready

FEW = 2**23
"""numbers that one thread has normalized before the others, whose cores decode between steps, are awake"""


def can_normalize(images: UInt8[Tensor, "B C h w"]) -> bool:
    """Whether `normalize` is for these images: on a CPU, channels last in memory, as they are decoded."""
    plain = type(images) is Tensor and images.device.type == "cpu"
    return plain and images.permute(0, 2, 3, 1).is_contiguous() and ready()


def normalize(
    images: UInt8[Tensor, "B C h w"], scale: Float[Tensor, "C 1 1"], shift: Float[Tensor, "C 1 1"]
) -> Float[Tensor, "B C h w"]:
    """Level * scale + shift, channel by channel; contiguous, unlike the images."""
    (b, c, h, w), out = images.shape, torch.empty(images.shape, dtype=torch.float32)
    threads = torch.get_num_threads() if images.numel() > FEW else 1
    library().normalize(threads, b, h * w, c, *addresses(images.permute(0, 2, 3, 1), scale, shift, out))
    return out
