"""MAE: masked autoencoders are scalable vision learners (He et al. 2021, arXiv:2111.06377).

Hide three quarters of the patches. The encoder, a plain ViT, sees only the rest; a small decoder
gets its output with mask tokens in the gaps and paints the missing pixels. The loss is the mean
squared error on the hidden patches alone, by default against pixels normalized patch by patch.

    x        image                                       image    [B C h w]
    x_v      the visible quarter, at random              keep     [B n]
    z    = f(x_v + pos)                                  latent   [B 1+n D]
    y    = g(unshuffle([W z, mask token ...]) + pos)     pixels   [B N P]
    x'   = (x - mean) / sqrt(var + 1e-6), per patch      target   [B N P]
    loss = mean over hidden patches of |y - x'|^2        mean_square

What this file does differently: training takes the visible patches in raster order (the encoder
does not care about order, so loss and gradients are the same; the encoder takes any order), patches
that nobody sees are not even projected, and the decoder's last block is finished for hidden ones alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import passes
from ..blocks import Block, Stack, pick
from ..config import MethodConfig
from ..initialize import initialize
from ..masks import MaskPolicy, RandomMask, keep_count, visible_indices
from ..positions import sincos_2d
from ..views import View
from ..vit import Tokens, ViT, ViTConfig, pair, places_of
from .base import Batch, Method, Output, Progress


@dataclass(frozen=True)
class MAEConfig(MethodConfig):
    """Defaults: ViT-B/16 at 224 px, the paper's Table 8 and the released code."""

    probe = "mae"

    # --- what changes results ---
    vit: ViTConfig = ViTConfig(pos_embed="sincos", init="mae")
    """the encoder, the backbone that stays"""
    views: tuple[View, ...] = (View(224, scale=(0.2, 1.0)),)
    """one view: random resized crop and flip, no color"""
    masks: tuple[MaskPolicy, ...] = (RandomMask(0.75),)
    """which patches are hidden; 0.75 hides 147 of 196"""
    decoder_width: int = 512
    """features of a decoder token; Table 1b: 512"""
    decoder_depth: int = 8
    """decoder blocks; Table 1a: 8"""
    decoder_heads: int = 16
    """attention heads of the decoder"""
    norm_pixels: bool = True
    """predict pixels normalized patch by patch (Table 1d); the released `visualize` weights do not"""

    def grids(self) -> tuple[tuple[int, int], ...]:
        return (self.vit.grid,)

    def build(self) -> "MAE":
        return MAE(self)


class MAE(Method):
    """An encoder of visible patches and a decoder of pixels."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        (view,), (mask,) = config.views, config.masks
        if pair(view.size) != config.vit.image_hw:
            raise ValueError(
                f"the view is {view.size} px and the ViT expects {config.vit.image_size}; "
                f"give both --method.views.0.size and --method.vit.image-size"
            )
        if not isinstance(mask, RandomMask):
            raise ValueError(f"MAE needs as many visible patches in every image; {mask} varies, use RandomMask")
        n = config.vit.grid[0] * config.vit.grid[1]
        if not 0 < keep_count(n, mask.ratio) < n:
            raise ValueError(f"mask ratio {mask.ratio} leaves {keep_count(n, mask.ratio)} of {n} patches visible")
        self.config = config
        self.patch = config.vit.patch_hw
        self.norm_pixels = config.norm_pixels
        self.encoder = ViT(config.vit)
        self.decoder = Decoder(config)

    def forward(self, batch: Batch, at: Progress) -> Output:
        (image,), (mask,), (hidden,) = batch.views, batch.masks, batch.hidden
        keep = visible_indices(mask, mask.shape[1] - hidden.numel() // len(mask))  # [B n] what the encoder sees
        latent = self.encoder(image, keep=keep)  # [B 1+n D]
        pixels = self.decoder(latent, keep, hidden)  # [M P] mask tokens fill the gaps
        if passes.at_once(pixels):  # the same in one pass
            loss = passes.pixel_error(pixels, image, hidden, self.patch, self.norm_pixels)
        else:
            loss = mean_square(pixels, self.target(image, hidden))
        return Output(loss, metrics={}, sums={})

    def reconstruct(self, image: Float[Tensor, "B C h w"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N P"]:
        """Paint every patch from those that `mask` leaves visible, in the pixel space of the loss."""
        keep = visible_indices(mask, int((~mask[0]).sum()))
        return self.decoder(self.encoder(image, keep=keep), keep)

    def target(
        self, image: Float[Tensor, "B C h w"], hidden: Int[Tensor, "M"] | None = None
    ) -> Float[Tensor, "B N P"] | Float[Tensor, "M P"]:
        """The pixels to predict, of all patches or the hidden ones: normalized patch by patch if so configured."""
        patches = pick(patchify(image, self.patch), hidden)
        return normalize(patches) if self.norm_pixels else patches

    def loss(
        self, image: Float[Tensor, "B C h w"], pixels: Float[Tensor, "B N P"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, ""]:
        """Mean squared error over the hidden patches of the whole batch; visible ones are not scored."""
        return mean_square(pixels[mask], self.target(image)[mask])

    def blocks(self) -> list[nn.Module]:
        return [*self.encoder.blocks, *self.decoder.blocks]

    def backbone(self) -> ViT:
        return self.encoder


class Decoder(nn.Module):
    """Visible tokens, mask tokens in the gaps, a few narrow blocks, a linear map to pixels."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        vit, d = config.vit, config.decoder_width
        (ph, pw), self.grid = vit.patch_hw, vit.grid
        self.embed = nn.Linear(vit.width, d)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, d))
        table = torch.tensor(sincos_2d(d, self.grid, prefix=1), dtype=torch.float32).unsqueeze(0)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = Stack(
            Block(d, config.decoder_heads, vit.mlp_ratio, norm_eps=vit.norm_eps) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(d, eps=vit.norm_eps)
        self.pred = nn.Linear(d, ph * pw * vit.channels)
        initialize(self, "mae")

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 _ D"]:
        if grid == self.grid:
            return self.pos_embed
        return torch.from_numpy(sincos_2d(self.pos_embed.shape[-1], grid, prefix=1)).to(self.pos_embed).unsqueeze(0)

    def forward(
        self, latent: Tokens, keep: Int[Tensor, "B n"], only: Int[Tensor, "M"] | None = None
    ) -> Float[Tensor, "B N P"] | Float[Tensor, "M P"]:
        """Paint all patches, or those at `only`, flat indices of B*N."""
        r, n, grid = latent.prefix.shape[1], keep.shape[1], latent.grid
        x = self.embed(torch.cat([latent.prefix, latent.patches], dim=1))  # [B R+n D]
        prefix, visible = x.split([r, n], dim=1)
        place = keep.unsqueeze(-1).expand_as(visible)
        gaps = self.mask_token.to(x.dtype).expand(len(keep), grid[0] * grid[1], -1)
        patches = gaps.scatter(1, place, visible)  # [B N D] each visible token back at its place
        pos = self.positions(grid)
        x = torch.cat([prefix[:, :1] + pos[:, :1], prefix[:, 1:].to(pos.dtype), patches + pos[:, 1:]], dim=1)
        places = None if only is None else places_of(only, grid[0] * grid[1], r)
        pixels = self.pred(self.norm(self.blocks(x, None, places)))
        return pixels[:, r:] if only is None else pixels


def mean_square(pixels: Float[Tensor, "M P"], target: Float[Tensor, "M P"]) -> Float[Tensor, ""]:
    """The loss: mean over hidden patches, each the mean of its squared errors; in fp32."""
    return F.mse_loss(pixels.float(), target)


def patchify(image: Float[Tensor, "B C h w"], patch: tuple[int, int]) -> Float[Tensor, "B N P"]:
    """Cut images into flat patches; within a patch the order is row, column, channel (not conv's)."""
    (ph, pw), (b, c, h, w) = patch, image.shape
    x = image.reshape(b, c, h // ph, ph, w // pw, pw).permute(0, 2, 4, 3, 5, 1)  # [B gh gw ph pw C]
    return x.reshape(b, (h // ph) * (w // pw), ph * pw * c)


def unpatchify(
    patches: Float[Tensor, "B N P"], patch: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "B C h w"]:
    """Put flat patches back together: the inverse of `patchify`."""
    (ph, pw), (gh, gw), b = patch, grid, patches.shape[0]
    x = patches.reshape(b, gh, gw, ph, pw, -1).permute(0, 5, 1, 3, 2, 4)  # [B C gh ph gw pw]
    return x.reshape(b, -1, gh * ph, gw * pw)


def patch_statistics(
    patches: Float[Tensor, "B N P"],
) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    """Mean and deviation of each patch over pixels and channels: unbiased variance, eps 1e-6 in the root."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def normalize(patches: Float[Tensor, "*patches P"]) -> Float[Tensor, "*patches P"]:
    """Patches with their own mean removed and divided by their own deviation (Table 1d, w/ norm).

    One pass of layer normalization, whose variance is the biased one: (P - 1) / P of `patch_statistics`.
    """
    biased = (patches.shape[-1] - 1) / patches.shape[-1]
    return F.layer_norm(patches, patches.shape[-1:], eps=1e-6 * biased) * math.sqrt(biased)


def denormalize(patches: Float[Tensor, "B N P"], image: Float[Tensor, "B C h w"], patch: tuple[int, int]) -> Tensor:
    """Bring normalized predictions back to pixels with the statistics of the true patches.

    The truth's brightness and contrast leak into such a picture; pictures must say so.
    """
    mean, deviation = patch_statistics(patchify(image, patch))
    return patches * deviation + mean
