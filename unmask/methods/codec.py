"""The two networks of a discrete VAE: images to logits over codes, and codes back to images.

Two published designs at any width, a file each: `codec_dalle.py` is DALL-E's (Ramesh et al. 2021; the released
`dall_e` package), `codec_beit.py` is BEiT's `DiscreteVAE` (after DALLE-pytorch). Here is what they share, and
what the rest of the package knows of them. A codec that is frozen is a tokenizer: see `unmask/tokenizers.py`.

    x        an image in [0, 1], mapped                  codec.map(image)           [B C H W]
    l(x)     logits of each cell over the K codes        codec.logits(x)            [B N K]
    y, z     a relaxed sample, or ids                    relax(l, tau), argmax      [B N K], [B N]
    mu, ln b what the decoder says of the mapped pixels  codec.paint(y, grid)       [B 2C H W]

Differs from the originals: the products with the codes are matrix products over [B N K], and ids are
looked up, never made one-hot.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..positions import grid_of
from .pixels import logit_laplace

LEAST_LOG_SCALE = -7.0
"""floor of ln b: without one, flat image regions drive the likelihood to infinity (not in the paper)"""


@dataclass(frozen=True)
class CodecConfig:
    """The architecture of a discrete VAE. Defaults: OpenAI's released DALL-E encoder and decoder."""

    kind: Literal["dalle", "beit"] = "dalle"
    """dalle: residual groups with pools; beit: strided convolutions and a codebook (BEiT's DiscreteVAE)"""
    vocab: int = 8192
    """codes, K"""
    stride: int = 8
    """pixels of a cell's side: 1, 2, 4, 8, ..."""
    channels: int = 3
    """image channels"""
    width: int = 256
    """features of the first group (dalle: doubled by each next one) or of every layer (beit)"""
    groups: int = 4
    """dalle: groups of residual blocks; more than log2(stride)"""
    blocks: int = 2
    """dalle: residual blocks of a group"""
    code_width: int = 128
    """features of a code as the decoder sees it; BEiT's DiscreteVAE 512"""
    likelihood: Literal["laplace", "mse", "smooth_l1"] = "laplace"
    """what the decoder's output means; beit has no scales, hence no laplace"""

    def __post_init__(self) -> None:
        if self.stride < 1 or self.stride & (self.stride - 1):
            raise ValueError(f"codec stride {self.stride} is no power of two; use 1, 2, 4 or 8")
        if self.kind == "dalle" and self.pools >= self.groups:
            raise ValueError(f"stride {self.stride} pools {self.pools} times; give at least {self.pools + 1} groups")
        if self.kind == "dalle" and self.width % 4:
            raise ValueError(f"codec width {self.width} is no multiple of 4, which its blocks divide it by")
        if self.kind == "beit" and self.likelihood == "laplace":
            raise ValueError("a beit codec predicts no scales; use likelihood mse or smooth_l1")
        if self.kind == "beit" and self.stride == 1:
            raise ValueError("a beit codec halves the image at each layer; use stride 2, 4 or 8")

    @property
    def pools(self) -> int:
        """How often the image is halved, log2(stride)."""
        return self.stride.bit_length() - 1


class Codec(nn.Module):
    """Encoder and decoder; frozen, they are a tokenizer."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        self.vocab, self.stride, self.channels = config.vocab, config.stride, config.channels

    def map(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Bring an image in [0, 1] to the range that the encoder reads and the decoder predicts."""
        raise TypeError(f"{type(self).__name__} has no pixel map")

    def logits(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """Score every code at every cell, in raster order, from a mapped image; in fp32."""
        return self.scores(self.features(x)).float()

    def features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """What the encoder's last layer reads of each cell."""
        raise TypeError(f"{type(self).__name__} has no encoder")

    def scores(self, features: Float[Tensor, "*cells D"]) -> Float[Tensor, "*cells K"]:
        """The encoder's last layer: a product of each cell with every code."""
        raise TypeError(f"{type(self).__name__} has no encoder")

    def paint(
        self, codes: Float[Tensor, "B N K"] | Int[Tensor, "B N"], grid: tuple[int, int]
    ) -> Float[Tensor, "B _ H W"]:
        """Decode relaxed codes or ids to what the likelihood reads (dalle: means, then log scales)."""
        raise TypeError(f"{type(self).__name__} has no decoder")

    def mean(self, painted: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B C H W"]:
        """The mapped image that a decoder's output stands for."""
        return painted

    def pixels(self, painted: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B C H W"]:
        """The image in [0, 1] that a decoder's output stands for."""
        raise TypeError(f"{type(self).__name__} has no pixel map")

    def error(self, painted: Float[Tensor, "B _ H W"], x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Negative log-likelihood of each mapped pixel and channel, in nats (mse, smooth_l1: no density)."""
        painted, c = painted.float(), self.channels
        if self.config.likelihood == "laplace":
            return logit_laplace(x, painted[:, :c], painted[:, c:].clamp(min=LEAST_LOG_SCALE))
        if self.config.likelihood == "mse":
            return (self.mean(painted) - x).square()
        return F.smooth_l1_loss(self.mean(painted), x, reduction="none")

    def grid(self, image: Float[Tensor, "B C H W"]) -> tuple[int, int]:
        """Cells in a column and in a row of an image."""
        if image.shape[1] != self.channels:
            raise ValueError(f"image has {image.shape[1]} channels, the tokenizer wants {self.channels}")
        return grid_of((image.shape[2], image.shape[3]), (self.stride, self.stride))

    def blocks(self) -> list[nn.Module]:
        """The residual blocks: units to compile and shard. Default: none."""
        return []

    @torch.no_grad()
    def encode(
        self,
        image: Float[Tensor, "B C H W"],
        cells: Int[Tensor, "M"] | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> Int[Tensor, "B N"] | Int[Tensor, "M"]:
        """Turn images in [0, 1] into ids, one a cell in raster order: the argmax.

        Args:
            image: whose sides divide by the stride.
            cells: flat indices of B*N; only these are scored.
            precision: of the products; whatever autocast there is around.
        """
        self.grid(image)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            features = self.features(self.map(image.float()))
            if cells is not None:
                features = features.flatten(0, 1).index_select(0, cells)
        with torch.autocast(image.device.type, enabled=False):  # of close scores the higher one, not the first
            return self.scores(features.float()).argmax(-1)

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """Turn ids of a (gh, gw) grid into images in [0, 1]."""
        with torch.autocast(ids.device.type, enabled=False):
            return self.pixels(self.paint(ids, grid))


def build_codec(config: CodecConfig) -> Codec:
    """Make a codec with fresh weights."""
    from .codec_beit import BeitCodec  # here, as both designs build on this file
    from .codec_dalle import DalleCodec

    return DalleCodec(config) if config.kind == "dalle" else BeitCodec(config)


def cells_of(x: Float[Tensor, "B D gh gw"]) -> Float[Tensor, "B N D"]:
    """The cells of a map in raster order."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def product(cells: Float[Tensor, "*cells D"], conv: nn.Conv2d) -> Float[Tensor, "*cells K"]:
    """Apply a 1x1 convolution as a matrix product over cells."""
    return F.linear(cells, conv.weight.flatten(1), conv.bias)
