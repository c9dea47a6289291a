"""Floating-point operations of a training step by formula: the matrix products and convolutions of one image.

A product of m multiply-adds costs 2m operations forward, 2m for the gradient of its weights and 2m for
that of its input; what reads the image has no input gradient, what is frozen goes forward alone. This is
the usual numerator of "model FLOPs utilization": recomputed activations, softmax, norms and the
optimizer do not count. tests/test_flops.py holds it against torch's counter.
"""

import dataclasses
import math
from itertools import pairwise

from .config import MethodConfig
from .masks import keep_count
from .methods.beit import BEiTConfig
from .methods.classify import ClassifyConfig
from .methods.codec import CodecConfig
from .methods.dvae import DVAEConfig
from .methods.ibot import IBOTConfig
from .methods.mae import MAEConfig
from .positions import pair
from .randomness import key
from .views import expand
from .vit import ViTConfig, macs

TRAINED, READS_IMAGE, FROZEN = 6, 4, 2
"""operations a multiply-add: forward and both gradients; without that of the input; forward"""
DRAWS = 256
"""masks that the mean number of hidden patches is taken over"""


def flops_of_image(config: MethodConfig, hidden: float | None = None) -> float:
    """Operations of forward and backward for one image.

    Args:
        config: of a method of this package.
        hidden: hidden patches of an image, over all its masked views; None: the mean of what its masks draw.
    Raises:
        TypeError: the method is another one's; count it with forecast.flops_per_image.
    """
    hidden = hidden_patches(config) if hidden is None else hidden
    match config:
        case MAEConfig():
            return _mae(config)
        case BEiTConfig():
            return _beit(config, hidden)
        case IBOTConfig():
            return _ibot(config, hidden)
        case DVAEConfig():
            return _dvae(config)
        case ClassifyConfig():
            vit = config.vit
            return _backbone(vit, vit.grid) + TRAINED * vit.width * vit.classes
        case _:
            raise TypeError(f"no formula for {type(config).__name__}; count it with forecast.flops_per_image")


def hidden_patches(config: MethodConfig, draws: int = DRAWS) -> float:
    """The mean number of hidden patches of an image, over its masked views and the first `draws` images."""
    drawn = [
        policy(grid, key(0, "mask", v, position)).sum()
        for v, (policy, grid) in enumerate(zip(config.masks, config.grids(), strict=True))
        for position in range(draws)
    ]
    return float(sum(drawn)) / draws


def _backbone(
    vit: ViTConfig,
    grid: tuple[int, int],
    visible: int | None = None,
    trained: bool = True,
    read: float | None = None,
) -> float:
    """Patch embedding and blocks, of all patches or of `visible` ones; the loss reads all tokens or `read` of them."""
    n = grid[0] * grid[1] if visible is None else visible
    embedding = n * math.prod(vit.patch_hw) * vit.channels * vit.width
    tokens = 1 + vit.registers + n
    blocks = macs(vit, tokens) - (0 if read is None else _unfinished(vit, tokens - read))
    return READS_IMAGE * embedding + TRAINED * blocks if trained else FROZEN * (embedding + blocks)


def _unfinished(vit: ViTConfig, tokens: float) -> float:
    """What the last block saves on tokens that nobody reads: projection and MLP."""
    return tokens * (1 + 2 * vit.mlp_ratio) * vit.width**2


def _mae(config: MAEConfig) -> float:
    vit, (mask,), n = config.vit, config.masks, math.prod(config.vit.grid)
    visible = keep_count(n, getattr(mask, "ratio"))  # noqa: B009 - MAE takes no other mask
    prefix, d = 1 + vit.registers, config.decoder_width
    decoder = dataclasses.replace(vit, width=d, depth=config.decoder_depth, heads=config.decoder_heads)
    pixels = math.prod(vit.patch_hw) * vit.channels
    ends = (prefix + visible) * vit.width * d + (n - visible) * d * pixels
    blocks = macs(decoder, prefix + n) - _unfinished(decoder, prefix + visible)
    return _backbone(vit, vit.grid, visible) + TRAINED * (blocks + ends)


def _beit(config: BEiTConfig, hidden: float) -> float:
    head = TRAINED * hidden * config.vit.width * config.tokenizer.vocab
    return _backbone(config.vit, config.vit.grid, read=hidden) + head + tokenizer_flops(config, hidden)


def tokenizer_flops(config: BEiTConfig, hidden: float) -> float:
    """The part of BEiT's operations for one image that makes the tokens of its hidden patches."""
    twin = config.views[0].twin
    assert twin is not None
    return FROZEN * sum(_encoder(config.tokenizer, (twin, twin), hidden))


def _ibot(config: IBOTConfig, hidden: float) -> float:
    """Student on all crops, teacher on the global ones; its prototypes see [CLS] and hidden patches alone."""
    vit, views = config.vit, expand(config.views)
    sizes = [pair(view.size) for view in views]
    grids = [(h // vit.patch_hw[0], w // vit.patch_hw[1]) for h, w in sizes]
    widths = [vit.width, *[config.head_width] * (config.head_layers - 1), config.bottleneck]
    mlp = sum(a * b for a, b in pairwise(widths))
    k = config.bottleneck * config.prototypes
    k_patch = config.bottleneck * (config.own_patches(None) or config.prototypes)
    k_teacher = config.bottleneck * (config.own_patches(config.shared_head_teacher) or config.prototypes)
    globals_ = grids[: config.globals]
    student = sum(_backbone(vit, grid, read=1) for grid in grids) + TRAINED * _unfinished(vit, hidden)
    student += TRAINED * ((len(grids) + hidden) * mlp + len(grids) * k + hidden * k_patch)
    teacher = sum(_backbone(vit, grid, trained=False, read=None if config.masks else 1) for grid in globals_)
    rows = sum(1 + (math.prod(grid) if config.masks else 0) for grid in globals_)
    return student + teacher + FROZEN * (rows * mlp + len(globals_) * k + hidden * k_teacher)


def _dvae(config: DVAEConfig) -> float:
    (view,) = config.views
    size = view.shape if view.twin is None else (view.twin, view.twin)
    reads, rest = _encoder(config.codec, size)
    return READS_IMAGE * reads + TRAINED * (rest + _decoder(config.codec, size))


def _encoder(codec: CodecConfig, size: tuple[int, int], scored: float | None = None) -> tuple[float, float]:
    """Multiply-adds of the layer that reads the image, and of the others; logits of all cells or of `scored` ones."""
    pixels, d = math.prod(size), codec.width
    cells = pixels // codec.stride**2 if scored is None else scored
    if codec.kind == "beit":
        halved = [pixels // 4 ** (i + 1) for i in range(codec.pools)]
        inner = sum(n * 16 * d * d for n in halved[1:]) + sum(n * 19 * d * d for n in halved)
        return halved[0] * 16 * codec.channels * d, inner + cells * d * codec.vocab
    widths = [d * 2**g for g in range(codec.groups)]
    inner = sum(
        pixels // 4 ** min(g, codec.pools) * _group(n_in, n_out, codec.blocks, (3, 3, 3, 1))
        for g, (n_in, n_out) in enumerate(zip([d, *widths], widths, strict=False))
    )
    return pixels * 49 * codec.channels * d, inner + cells * widths[-1] * codec.vocab


def _decoder(codec: CodecConfig, size: tuple[int, int]) -> float:
    pixels, d = math.prod(size), codec.width
    cells = pixels // codec.stride**2
    lookup = cells * codec.vocab * codec.code_width
    if codec.kind == "beit":
        n_in = [codec.code_width, *[d] * (codec.pools - 1)]
        layers = sum(cells * 4**i * (16 * n * d + 4 * 19 * d * d) for i, n in enumerate(n_in))
        return lookup + layers + pixels * d * codec.channels
    widths = [d * 2**g for g in reversed(range(codec.groups))]
    still = codec.groups - 1 - codec.pools  # groups at the resolution of the cells, before the first upsampling
    layers = sum(
        cells * 4 ** max(0, g - still) * _group(n_in, n_out, codec.blocks, (1, 3, 3, 3))
        for g, (n_in, n_out) in enumerate(zip([codec.code_width, *widths], widths, strict=False))
    )
    return lookup + layers + pixels * widths[-1] * 2 * codec.channels


def _group(n_in: int, n_out: int, blocks: int, kernels: tuple[int, ...]) -> int:
    """Multiply-adds a pixel of a group of residual blocks, the first of which changes the width."""
    inner, total = n_out // 4, 0
    for width in (n_in, *[n_out] * (blocks - 1)):
        sizes = zip((width, inner, inner, inner), (inner, inner, inner, n_out), kernels, strict=True)
        total += sum(k * k * a * b for a, b, k in sizes) + (width * n_out if width != n_out else 0)
    return total
