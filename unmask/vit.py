"""The one Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), shared by every method.

A plain pre-norm Transformer over image patches with a class token; no convolutional stem, cost
quadratic in the number of patches. What the papers add is a switch here: fixed sin-cos positions
(MAE), relative position bias and layer scale (BEiT), drop path, a mask token, registers. Parameter
names are timm's.

Dimensions, for the whole project: B batch, V views, N patches, R prefix tokens (class token and
registers), T = R + N, D width, H heads, P pixels of a patch, K prototypes or token ids, M hidden
patches in the batch, S stored samples, gh gw the patch grid. Masks: True = hidden.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .blocks import Block, Stack
from .initialize import initialize
from .positions import RelativePositionBias, grid_of, pair, resize_pos_embed, sincos_2d


@dataclass(frozen=True)
class ViTConfig:
    """The architecture of one ViT. Defaults: ViT-B/16 at 224 px."""

    image_size: int | tuple[int, int] = 224
    """pixels; one number for a square, or (height, width)"""
    patch: int | tuple[int, int] = 16
    """pixels of a patch; one number for a square, or (height, width)"""
    channels: int = 3
    """image channels"""
    width: int = 768
    """features of a token, D"""
    depth: int = 12
    """Transformer blocks"""
    heads: int = 12
    """attention heads; must divide the width"""
    mlp_ratio: float = 4.0
    """hidden units of a block's MLP over its width"""
    pos_embed: Literal["learned", "sincos", "none"] = "learned"
    """absolute positions: learned (ViT, iBOT), fixed 2-D sin-cos (MAE), none (BEiT)"""
    pos_resize: Literal["size", "factor", "antialias"] = "size"
    """how learned positions meet another grid: size (MAE, BEiT), factor (DINO, iBOT), antialias (timm)"""
    rel_pos: Literal["none", "shared", "per-block"] = "none"
    """relative position bias: one table for all blocks (BEiT pre-training) or one each (fine-tuning)"""
    qkv_bias: Literal["full", "qv", "none"] = "full"
    """biases of queries, keys and values; BEiT has none for the keys"""
    layer_scale: float | None = None
    """initial gamma on both residual branches; BEiT-B 0.1, BEiT-L 1e-5"""
    drop_path: float = 0.0
    """chance to skip the last block's branches; rises linearly from 0 at the first block"""
    dropout: float = 0.0
    """chance of a feature to be zeroed after positions, attention, GELU and MLP; 0.1 in ViT, 0 in all methods since"""
    registers: int = 0
    """extra tokens after the class token, without positions (Darcet et al. 2023)"""
    mask_token: bool = False
    """own a learned embedding for hidden patches (BEiT; iBOT's student)"""
    classes: int = 0
    """outputs of a linear head; 0: no head"""
    pool: Literal["cls", "mean"] = "cls"
    """what the head reads: the normalized class token, or the mean patch"""
    head_norm: Literal["after", "before", "none"] = "after"
    """the final norm of a head on the mean patch: after the mean (MAE, BEiT), or before it (linear probes); none: a
    probe on a network that has no other"""
    norm_eps: float = 1e-6
    """epsilon of every LayerNorm"""
    gelu: Literal["erf", "tanh"] = "erf"
    """tanh only for the JAX weights"""
    init: Literal["timm", "mae", "beit", "jax"] = "timm"
    """how fresh weights are drawn: see `initialize`"""

    @property
    def image_hw(self) -> tuple[int, int]:
        return pair(self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        return pair(self.patch)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in a column and in a row, (gh, gw)."""
        return grid_of(self.image_hw, self.patch_hw)

    @property
    def normalizes_after_pooling(self) -> bool:
        """Whether the final norm is fc_norm, after the mean: timm's convention for mean-pooled classifiers."""
        return self.classes > 0 and self.pool == "mean" and self.head_norm == "after"


SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 96, "depth": 4, "heads": 3},
    "micro": {"width": 192, "depth": 6, "heads": 3},
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}
"""Width, depth and heads of the sizes the papers name (nano and micro are ours)."""


class Tokens(NamedTuple):
    """What a ViT returns: the class token and registers apart from the patches."""

    prefix: Float[Tensor, "B R D"]
    """class token first, then registers"""
    patches: Float[Tensor, "B n D"]
    """all N patches in raster order, or the kept ones in the order of `keep`"""
    grid: tuple[int, int]
    """the image's patch grid, (gh, gw)"""


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each: a convolution whose stride is its kernel.

    Written as a matrix product, so that patches nobody will look at are never projected.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch = config.patch_hw
        self.proj = nn.Conv2d(config.channels, config.width, self.patch, stride=self.patch)

    def forward(
        self, image: Float[Tensor, "B C h w"], keep: Int[Tensor, "B n"] | None = None
    ) -> Float[Tensor, "B n_ D"]:
        (ph, pw), (b, c, h, w) = self.patch, image.shape
        x = image.reshape(b, c, h // ph, ph, w // pw, pw).permute(0, 2, 4, 1, 3, 5)  # [B gh gw C ph pw]
        x = x.reshape(b, (h // ph) * (w // pw), c * ph * pw)  # conv order: channel, row, column
        if keep is not None:
            x = gather(x, keep)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


def gather(tokens: Float[Tensor, "#B N D"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n D"]:
    """Pick tokens of each image by index."""
    every = index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.expand(index.shape[0], -1, -1).gather(1, every)


class ViT(nn.Module):
    """A Vision Transformer; see ViTConfig for its parts."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        d, (gh, gw) = config.width, config.grid
        if config.registers and config.rel_pos != "none":
            raise ValueError(
                f"{config.registers} registers have no relative positions; use registers=0 or rel_pos=none"
            )
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, d)) if config.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, d)) if config.mask_token else None
        self.pos_embed = None
        if config.pos_embed == "sincos":
            table = torch.tensor(sincos_2d(d, (gh, gw), prefix=1), dtype=torch.float32).unsqueeze(0)
            self.pos_embed = nn.Parameter(table, requires_grad=False)
        elif config.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + gh * gw, d))
        shared = config.rel_pos == "shared"
        self.rel_pos_bias = RelativePositionBias(config.grid, config.heads) if shared else None
        self.pos_drop = nn.Dropout(config.dropout)
        rates = np.linspace(0.0, config.drop_path, config.depth)  # fidelity: block 0 gets 0, the last all
        self.blocks = Stack(self.block(float(rate)) for rate in rates)
        after = config.normalizes_after_pooling
        without = after or (config.classes > 0 and config.head_norm == "none")
        self.norm = nn.Identity() if without else nn.LayerNorm(d, eps=config.norm_eps)
        self.fc_norm = nn.LayerNorm(d, eps=config.norm_eps) if after else nn.Identity()
        self.head = nn.Linear(d, config.classes) if config.classes else nn.Identity()
        initialize(self, config.init)

    def block(self, drop_path: float) -> Block:
        config = self.config
        return Block(
            config.width,
            config.heads,
            config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            rel_pos=config.grid if config.rel_pos == "per-block" else None,
            layer_scale=config.layer_scale,
            drop_path=drop_path,
            dropout=config.dropout,
            norm_eps=config.norm_eps,
            gelu=config.gelu,
        )

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 _ D"] | None:
        """Absolute positions for a grid: stored, computed anew (sin-cos) or resized (learned)."""
        config = self.config
        if self.pos_embed is None or grid == config.grid:
            return self.pos_embed
        if config.pos_embed == "sincos":
            return torch.from_numpy(sincos_2d(config.width, grid, prefix=1)).to(self.pos_embed).unsqueeze(0)
        return resize_pos_embed(self.pos_embed, config.grid, grid, config.pos_resize)

    def embed(
        self,
        image: Float[Tensor, "B C h w"],
        keep: Int[Tensor, "B n"] | None = None,
        hidden: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], tuple[int, int]]:
        """Patches to tokens, with positions and the prefix; returns the tokens and the grid."""
        config = self.config
        if image.shape[1] != config.channels:
            raise ValueError(f"image has {image.shape[1]} channels, the ViT wants {config.channels}")
        grid = grid_of((image.shape[2], image.shape[3]), config.patch_hw)
        if config.rel_pos != "none" and grid != config.grid:
            raise ValueError(
                f"relative positions are for a {config.grid[0]}x{config.grid[1]} grid, the image gives "
                f"{grid[0]}x{grid[1]}; use {config.image_hw[0]}x{config.image_hw[1]} images"
            )
        x = self.patch_embed(image, keep)
        if hidden is not None:
            if self.mask_token is None:
                raise ValueError("hidden patches need a mask token: build the ViT with mask_token=True")
            x = torch.where(hidden.unsqueeze(-1), self.mask_token.to(x.dtype), x)  # before positions: BEiT, iBOT
        cls, pos = self.cls_token, self.positions(grid)
        if pos is not None:
            at, cls = pos[:, 1:], cls + pos[:, :1]
            x = x + (at if keep is None else gather(at, keep))
        prefix = cls if self.reg_token is None else torch.cat([cls, self.reg_token], dim=1)
        return self.pos_drop(torch.cat([prefix.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)), grid

    def forward(
        self,
        image: Float[Tensor, "B C h w"],
        *,
        keep: Int[Tensor, "B n"] | None = None,
        hidden: Bool[Tensor, "B N"] | None = None,
        layers: tuple[int, ...] | None = None,
    ) -> Tokens | tuple[Tokens, ...]:
        """Encode images.

        Args:
            image: normalized; any size that divides into patches (relative positions: their own only).
            keep: indices of the patches to embed, in any order; the others are never computed (MAE).
            hidden: True where a patch is replaced by `mask_token` (BEiT, iBOT).
            layers: instead of the end, return the outputs of these blocks, not normalized.
        Returns:
            tokens after the final norm; with `layers`, one Tokens a layer, in their order.
        """
        if layers is not None:
            layers = tuple(range(len(self.blocks))[i] for i in layers)  # -1 is the last block
        x, grid = self.embed(image, keep, hidden)
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        if layers is None:
            return self.tokens(self.norm(self.blocks(x, bias)), grid)
        taken: dict[int, Tokens] = {}
        for i, block in enumerate(self.blocks):
            x = block(x, bias)
            taken[i] = self.tokens(x, grid)
        return tuple(taken[i] for i in layers)

    def at(
        self, image: Float[Tensor, "B C h w"], places: Int[Tensor, "M"], *, hidden: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Encode images for a loss that reads some tokens: the last block is finished for these alone.

        Args:
            image, hidden: as above.
            places: flat indices of B*T; see `cls_places` and `places_of`.
        Returns:
            the tokens there, after the final norm.
        """
        x, _ = self.embed(image, None, hidden)
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        return self.norm(self.blocks(x, bias, places))

    def cls_places(self, image: Float[Tensor, "B C h w"]) -> Int[Tensor, "B"]:
        """Flat indices of B*T of the class tokens."""
        gh, gw = grid_of((image.shape[2], image.shape[3]), self.config.patch_hw)
        return torch.arange(len(image), device=image.device) * (1 + self.config.registers + gh * gw)

    def tokens(self, x: Float[Tensor, "B T D"], grid: tuple[int, int]) -> Tokens:
        prefix = 1 + self.config.registers
        return Tokens(x[:, :prefix], x[:, prefix:], grid)

    def logits(self, image: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
        """Class scores: the head on the class token, or on the mean patch, normalized as `fc_norm` says."""
        tokens = self(image)
        pooled = tokens.prefix[:, 0] if self.config.pool == "cls" else tokens.patches.mean(1)
        return self.head(self.fc_norm(pooled))

    @torch.no_grad()
    def attention(
        self, image: Float[Tensor, "B C h w"], layers: tuple[int, ...] | None = None
    ) -> tuple[Float[Tensor, "B H T T"], ...]:
        """Attention maps of the given blocks (default: all); each row is a query and sums to 1."""
        x, _ = self.embed(image)
        shared = None if self.rel_pos_bias is None else self.rel_pos_bias()
        maps = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if layers is None or i in layers:
                q, k, _ = block.attn.queries_keys_values(block.norm1(x))
                maps.append(block.attn.weights(q, k, block.attn.bias(shared)))
            x = block(x, shared)
        return tuple(maps)


def places_of(patches: Int[Tensor, "M"], count: int, prefix: int) -> Int[Tensor, "M"]:
    """Flat indices of B*T for patches that are given as flat indices of B*N.

    Args:
        patches: in any order.
        count: N.
        prefix: R.
    """
    return patches + (patches // count + 1) * prefix


def macs(config: ViTConfig, tokens: int) -> int:
    """Multiply-adds of all blocks for one image: depth * (12 n D^2 + 2 n^2 D) at mlp_ratio 4."""
    d, n = config.width, tokens
    return config.depth * (int((4 + 2 * config.mlp_ratio) * n * d * d) + 2 * n * n * d)
