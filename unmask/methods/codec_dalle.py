"""DALL-E's discrete VAE (Ramesh et al. 2021, A.1; the released `dall_e` package), at any width.

Groups of residual blocks, max pooling on the way down, nearest upsampling on the way up, a 1x1 convolution on each
side of the codes. What a codec is: `codec.py`.

Differs from the original: fewer pools give smaller strides, placed first in the encoder and last in the decoder.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .codec import Codec, CodecConfig, cells_of, product
from .pixels import map_pixels, unmap_pixels


class DalleCodec(Codec):
    """OpenAI's encoder and decoder, at any width."""

    def __init__(self, config: CodecConfig):
        super().__init__(config)
        self.encoder = DalleEncoder(config)
        self.decoder = DalleDecoder(config)

    def map(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return map_pixels(image)

    def features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        return self.encoder(x)

    def scores(self, features: Float[Tensor, "*cells D"]) -> Float[Tensor, "*cells K"]:
        with torch.autocast(features.device.type, enabled=False):  # in fp32 as the original's last layer
            return product(features.float(), self.encoder.output)

    def paint(
        self, codes: Float[Tensor, "B N K"] | Int[Tensor, "B N"], grid: tuple[int, int]
    ) -> Float[Tensor, "B _ H W"]:
        return self.decoder(codes, grid)

    def mean(self, painted: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B C H W"]:
        return painted[:, : self.channels].sigmoid()

    def pixels(self, painted: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B C H W"]:
        return unmap_pixels(self.mean(painted))  # ln b plays no part

    def blocks(self) -> list[nn.Module]:
        return [part for part in self.modules() if isinstance(part, GainBlock)]


class DalleEncoder(nn.Module):
    """7x7 convolution, residual groups with max pooling; `output`, a 1x1 convolution, turns cells into logits."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        gain = (config.groups * config.blocks) ** -2
        widths = [config.width * 2**g for g in range(config.groups)]
        self.input = Conv(config.channels, widths[0], 7)
        self.groups = nn.ModuleList()
        for g, (n_in, n_out) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            pool = [nn.MaxPool2d(2)] if g < config.pools else []
            self.groups.append(group(n_in, n_out, config.blocks, (3, 3, 3, 1), gain, pool))
        self.output = Conv(widths[-1], config.vocab, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        x = self.input(x.contiguous(memory_format=torch.channels_last))
        for part in self.groups:
            x = part(x)
        return cells_of(F.relu(x))


class DalleDecoder(nn.Module):
    """1x1 convolution from the codes, residual groups with nearest upsampling, 1x1 to means and scales."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        gain = (config.groups * config.blocks) ** -2
        widths = [config.width * 2**g for g in reversed(range(config.groups))]
        self.input = Conv(config.vocab, config.code_width, 1)
        self.groups = nn.ModuleList()
        for g, (n_in, n_out) in enumerate(zip([config.code_width, *widths], widths, strict=False)):
            up = config.groups - 1 - config.pools <= g < config.groups - 1  # mirrors the encoder's pools
            scale = [nn.Upsample(scale_factor=2, mode="nearest")] if up else []
            self.groups.append(group(n_in, n_out, config.blocks, (1, 3, 3, 3), gain, scale))
        self.output = Conv(widths[-1], 2 * config.channels, 1)

    def forward(
        self, codes: Float[Tensor, "B N K"] | Int[Tensor, "B N"], grid: tuple[int, int]
    ) -> Float[Tensor, "B _ H W"]:
        table, bias = self.input.weight.flatten(1), self.input.bias  # [D K]
        assert bias is not None
        with torch.autocast(codes.device.type, enabled=False):
            x = F.linear(codes, table, bias) if codes.is_floating_point() else F.embedding(codes, table.t()) + bias
        x = x.unflatten(1, grid).permute(0, 3, 1, 2)  # [B D gh gw]
        for part in self.groups:
            x = part(x)
        return self.output(F.relu(x))


class Conv(nn.Conv2d):
    """A convolution that keeps the size; weights from normal(0, 1 / sqrt(in k^2)), zero biases."""

    def __init__(self, n_in: int, n_out: int, kernel: int):
        super().__init__(n_in, n_out, kernel, padding=(kernel - 1) // 2)
        nn.init.normal_(self.weight, std=1 / math.sqrt(n_in * kernel**2))
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class GainBlock(nn.Module):
    """skip(x) + gain * four convolutions, a ReLU before each, a quarter as wide inside."""

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], gain: float):
        super().__init__()
        inner, self.gain = n_out // 4, gain
        self.skip = Conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        sizes = zip((n_in, inner, inner, inner), (inner, inner, inner, n_out), kernels, strict=True)
        self.convs = nn.ModuleList(Conv(*size) for size in sizes)

    def forward(self, x: Float[Tensor, "B n h w"]) -> Float[Tensor, "B m h w"]:
        y = x
        for conv in self.convs:
            y = conv(F.relu(y))
        return self.skip(x) + self.gain * y


def group(
    n_in: int, n_out: int, blocks: int, kernels: tuple[int, ...], gain: float, last: Sequence[nn.Module]
) -> nn.Sequential:
    """Residual blocks, the first of which changes the width, and what changes the resolution."""
    return nn.Sequential(*(GainBlock(n_in if b == 0 else n_out, n_out, kernels, gain) for b in range(blocks)), *last)
