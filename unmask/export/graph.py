"""A ViT as one graph for any batch and, where its positions allow, any image size.

`ViT.forward` decides in Python what a grid needs: stored, computed or resized positions. A traced graph
keeps only the answer for the size that it was traced at. Here the same positions are made of tensor
operations, so that ONNX and torch.export can leave the size open.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..vit import ViT, ViTConfig

TOLERANCE = 1e-4
"""between a written graph and the network it was made of, in parts of the largest output"""


class Outputs(NamedTuple):
    """What the graph returns; the names are those of its outputs."""

    cls: Float[Tensor, "B D"]
    """the class token, after the final norm"""
    patches: Float[Tensor, "B N D"]
    """the patches in raster order, after the final norm"""


def size_varies(config: ViTConfig) -> bool:
    """Whether the graph takes other image sizes: not with relative positions, nor with timm's filtered resize."""
    return config.rel_pos == "none" and not (config.pos_embed == "learned" and config.pos_resize == "antialias")


class Graph(nn.Module):
    """`image [B C h w]` to `cls [B D]`, `patches [B N D]` and, with a head, `logits [B K]`."""

    def __init__(self, vit: ViT):
        super().__init__()
        self.vit = vit.eval()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs, in their order."""
        return (*Outputs._fields, *(["logits"] if self.vit.config.classes else []))

    def forward(self, image: Float[Tensor, "B C h w"]) -> tuple[Tensor, ...]:
        vit, config = self.vit, self.vit.config
        cut = vit.patch_embed.proj(image)  # [B D gh gw]
        x, cls = cut.flatten(2).transpose(1, 2), vit.cls_token
        pos = self.positions(cut.shape[2], cut.shape[3]) if size_varies(config) else vit.pos_embed
        if pos is not None:
            x, cls = x + pos[:, 1:], cls + pos[:, :1]
        prefix = cls if vit.reg_token is None else torch.cat([cls, vit.reg_token], dim=1)
        x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        bias = None if vit.rel_pos_bias is None else vit.rel_pos_bias()
        for block in vit.blocks:
            x = block(x, bias)
        x = vit.norm(x)
        cls, patches = x[:, 0], x[:, 1 + config.registers :]
        if not config.classes:
            return cls, patches
        pooled = cls if config.pool == "cls" else patches.mean(1)
        return cls, patches, vit.head(vit.fc_norm(pooled))

    def positions(self, gh: int | torch.SymInt, gw: int | torch.SymInt) -> Float[Tensor, "1 T D"] | None:
        """`ViT.positions` for a grid whose sides are known only when the graph runs."""
        vit, config = self.vit, self.vit.config
        if vit.pos_embed is None:
            return None
        row, column = (torch.arange(side, dtype=torch.float32) for side in (gh, gw))
        if config.pos_embed == "sincos":
            return torch.cat([torch.zeros(1, 1, config.width), sincos(row, column, config.width)], dim=1)
        height, width = row[-1] + 1, column[-1] + 1  # as tensors: a graph cannot branch on a side
        (h, w), extra = config.grid, 0.1 if config.pos_resize == "factor" else 0.0
        native = (height == h) & (width == w)
        down, across = (
            cubic(place, side, torch.where(native, 1.0, side / (now + extra)))
            for place, side, now in ((row, h, height), (column, w, width))
        )
        table = vit.pos_embed[:, 1:].reshape(h, w, config.width)
        stretched = torch.einsum("yh,xw,hwd->yxd", down, across, table).reshape(1, -1, config.width)
        return torch.cat([vit.pos_embed[:, :1], stretched], dim=1)


def sincos(row: Float[Tensor, "gh"], column: Float[Tensor, "gw"], width: int) -> Float[Tensor, "1 N D"]:
    """`positions.sincos_2d` in tensor operations."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float32) / (width / 4))
    down = (row[:, None] * omega)[:, None].expand(-1, column.shape[0], -1)  # [gh gw D/4]
    across = (column[:, None] * omega)[None].expand(row.shape[0], -1, -1)
    return torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=-1).reshape(1, -1, width)


def cubic(place: Float[Tensor, "t"], source: int, scale: Float[Tensor, ""]) -> Float[Tensor, "t s"]:
    """Weights that stretch `source` samples to the places 0 ... t-1: torch's bicubic, one axis of it.

    Keys' kernel with a = -0.75; beyond the edge, the edge. At scale 1 the weights are exactly 0 and 1.
    """
    at = (place + 0.5) * scale - 0.5
    samples = torch.arange(source, dtype=torch.float32)
    weights = torch.zeros(1)
    for tap in (-1, 0, 1, 2):
        sample = at.floor() + tap
        d = (at - sample).abs()
        near = (1.25 * d - 2.25) * d * d + 1
        far = ((-0.75 * d + 3.75) * d - 6) * d + 3
        hit = sample.clamp(0, source - 1)[:, None] == samples
        weights = weights + torch.where(d <= 1, near, far)[:, None] * hit
    return weights


@torch.no_grad()
def difference(graph: Graph, run: Callable[[Tensor], Iterable[Tensor]]) -> float:
    """Compare what another engine makes of random images, of other sizes too where they vary, with the graph.

    Returns:
        the largest difference over the largest number of its output; infinite where one is not finite.
    """
    config = graph.vit.config
    (h, w), (ph, pw) = config.image_hw, config.patch_hw
    sides = [(h, w)] + ([(2 * ph, 3 * pw)] if size_varies(config) else [])
    worst = 0.0
    for batch, side in enumerate(sides, start=1):
        image = torch.randn(batch, config.channels, *side, generator=torch.Generator().manual_seed(batch))
        for ours, theirs in zip(graph(image), run(image), strict=True):
            worst = max(worst, torch.nan_to_num((ours - theirs).abs().max() / ours.abs().max(), torch.inf).item())
    return worst
