"""The training steps that are compared: sizes for a CPU, for a GPU, and for a look whether all runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.budget import synthetic_batch
from unmask.config import DataConfig, MethodConfig, OptimConfig
from unmask.flops import flops_of_image, hidden_patches, tokenizer_flops
from unmask.masks import BlockMask
from unmask.methods.base import Batch, Method, Progress
from unmask.methods.beit import BEiT, BEiTConfig
from unmask.methods.codec import CodecConfig
from unmask.methods.dvae import DVAEConfig
from unmask.methods.ibot import GLOBAL_1, GLOBAL_2, LOCAL, MASK, IBOTConfig
from unmask.methods.mae import MAEConfig
from unmask.views import View
from unmask.vit import SIZES, ViTConfig

AT = Progress(500, 1000, 50.0)
"""half way through a run: nothing is frozen, no weight is zero"""


@dataclass(frozen=True)
class Case:
    """One training step."""

    name: str
    images: int
    """of a step"""
    method: MethodConfig
    optim: OptimConfig
    tokens_given: bool = False
    """BEiT: the tokens are in memory; otherwise the tokenizer is part of the step"""
    device: str = "cpu"
    """where it runs: cpu or cuda"""

    def batch(self) -> Batch:
        """A prepared batch on the device; the same for all contenders."""
        return synthetic_batch(self.method, DataConfig(), self.images, torch.device(self.device))

    def tokens(self) -> Int[Tensor, "B N"]:
        """BEiT's tokens of the batch on the device; the same for all contenders."""
        assert isinstance(self.method, BEiTConfig)
        gh, gw = self.method.vit.grid
        return given_tokens(self.method.tokenizer.vocab, self.images, gh * gw).to(self.device)

    def flops(self) -> float:
        """Operations for one image of the batch, by formula: forward and backward of what our step computes."""
        hidden = hidden_patches(self.method, self.images)
        whole = flops_of_image(self.method, hidden)
        if self.tokens_given:
            assert isinstance(self.method, BEiTConfig)
            whole -= tokenizer_flops(self.method, hidden)
        return whole

    def build(self) -> Method:
        """Our method."""
        if self.tokens_given:
            assert isinstance(self.method, BEiTConfig)
            return BEiT(self.method, Given(self.method, self.images))
        return self.method.build()


class Given(nn.Module):
    """A Tokenizer that knows what the batch's tokens are."""

    ids: Tensor

    def __init__(self, config: BEiTConfig, images: int):
        super().__init__()
        codec, (gh, gw) = config.tokenizer, config.vit.grid
        self.vocab, self.stride, self.channels = codec.vocab, codec.stride, codec.channels
        self.register_buffer("ids", given_tokens(codec.vocab, images, gh * gw))

    def encode(self, image: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        return self.ids

    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        raise TypeError("given tokens cannot be painted")


def given_tokens(vocab: int, images: int, patches: int) -> Int[Tensor, "B N"]:
    """Tokens at random; the same for all contenders."""
    return torch.randint(vocab, (images, patches), generator=torch.Generator().manual_seed(0))


def _mae(name: str, images: int, vit: ViTConfig, decoder: tuple[int, int, int]) -> Case:
    width, depth, heads = decoder
    method = MAEConfig(
        vit=replace(vit, pos_embed="sincos", init="mae"),
        views=(View(vit.image_size, scale=(0.2, 1.0)),),
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=heads,
    )
    return Case(name, images, method, OptimConfig())  # its defaults are MAE's


def _beit(name: str, images: int, vit: ViTConfig, codec: CodecConfig, masks: BlockMask, tokens_given: bool) -> Case:
    usual = BEiTConfig()
    method = BEiTConfig(
        vit=replace(usual.vit, **{name: getattr(vit, name) for name in ("image_size", "patch", *SIZES["small"])}),
        views=(replace(usual.views[0], size=vit.image_size, twin=vit.grid[0] * codec.stride),),
        masks=(masks,),
        tokenizer=codec,
    )
    optim = OptimConfig(base_lr=1.5e-3, base_batch=None, schedule="step", betas=(0.9, 0.999), clip=3.0)
    return Case(name, images, method, optim, tokens_given)


def _ibot(name: str, images: int, vit: ViTConfig, local: tuple[int, int], head: dict[str, int]) -> Case:
    size, count = local
    views = [replace(view, size=vit.image_size) for view in (GLOBAL_1, GLOBAL_2)]
    if count:
        views.append(replace(LOCAL, size=size, count=count))
    method = IBOTConfig(
        vit=replace(vit, pos_resize="factor", drop_path=0.1), views=tuple(views), masks=(MASK, MASK), **head
    )
    optim = OptimConfig(
        base_lr=5e-4, schedule="step", betas=(0.9, 0.999), weight_decay=0.04, clip=3.0, clip_by="tensor"
    )
    return Case(name, images, method, optim)


def _dvae(name: str, images: int, side: int, vocab: int, code_width: int, width: int) -> Case:
    """BEiT's DiscreteVAE, with its sum over cells: the published code that trains end to end."""
    codec = CodecConfig(kind="beit", vocab=vocab, code_width=code_width, width=width, likelihood="mse")
    method = DVAEConfig(codec=codec, views=(View(side, twin=side),), kl_over="sum")
    return Case(name, images, method, OptimConfig(base_lr=1e-4, base_batch=None, betas=(0.9, 0.999), weight_decay=0.0))


def _vit(size: str, side: int = 224, patch: int = 16) -> ViTConfig:
    return ViTConfig(image_size=side, patch=patch, **SIZES[size])


_SMALL_MASK = BlockMask(count=24, smallest=4)
CASES = (
    _mae("mae-tiny-64", 128, _vit("tiny", 64, 8), (192, 4, 3)),
    _mae("mae-small", 32, _vit("small"), (256, 4, 4)),
    _mae("mae-base", 8, _vit("base"), (512, 8, 16)),
    _beit("beit-small", 16, _vit("small"), CodecConfig(), BlockMask(), True),
    _beit("beit-base", 4, _vit("base"), CodecConfig(), BlockMask(), True),
    _beit("beit-small-dalle", 4, _vit("small"), CodecConfig(), BlockMask(), False),
    _beit("beit-base-dalle", 4, _vit("base"), CodecConfig(), BlockMask(), False),
    _ibot("ibot-small", 4, _vit("small"), (96, 0), {}),
    _ibot("ibot-small-4-locals", 4, _vit("small"), (96, 4), {}),
    _dvae("dvae-64", 32, 64, 8192, 512, 64),
    _dvae("dvae-112", 16, 112, 8192, 512, 64),
)
"""on a CPU: "The speed of a step" in docs/results.md"""
LARGE = (
    _mae("mae-large", 4, _vit("large"), (512, 8, 16)),
    _ibot("ibot-base", 2, _vit("base"), (96, 0), {}),
    _ibot("ibot-small-10-locals", 2, _vit("small"), (96, 10), {}),
)
"""on a CPU only when named"""
GPU_IMAGES = {
    "mae-base": 512,
    "mae-large": 256,
    "beit-base": 256,
    "ibot-small": 256,
    "ibot-small-10-locals": 64,
    "ibot-base": 128,
}
"""on a GPU: images of a step; all contenders together fit into an H200's 141 GB. The GPU holds the weights, gradients
and moments of all, but the activations of one (`on_gpu.py`)"""
QUICK = (
    _mae("mae-nano", 16, _vit("nano", 64, 8), (64, 1, 2)),
    _beit("beit-nano", 8, _vit("nano", 64, 8), CodecConfig(vocab=512, width=64), _SMALL_MASK, True),
    _beit("beit-nano-dalle", 2, _vit("nano", 64, 8), CodecConfig(vocab=512, width=64), _SMALL_MASK, False),
    _ibot("ibot-nano-2-locals", 4, _vit("nano", 64, 8), (32, 2), {"prototypes": 512, "head_width": 128}),
    _dvae("dvae-32", 8, 32, 512, 64, 16),
)
"""the same code in seconds: whether all of it runs, not how fast"""


ALL = (*CASES, *LARGE, *QUICK)


def case(name: str) -> Case:
    """A case by its name, on the CPU."""
    return next(case for case in ALL if case.name == name)


def chosen(names: Sequence[str], quick: bool, device: str, images: int | None) -> list[Case]:
    """The cases to run.

    Args:
        names: of cases; none: those for the device, or the small ones.
        quick: the small ones.
        device: cpu or cuda.
        images: of a step, in place of what the case has for the device.
    """
    usual = [each.name for each in (QUICK if quick else CASES)] if device == "cpu" or quick else list(GPU_IMAGES)
    found = [case(name) for name in names or usual]
    if device != "cpu":
        found = [replace(each, images=GPU_IMAGES.get(each.name, each.images), device=device) for each in found]
    return [replace(each, images=images or each.images) for each in found]
