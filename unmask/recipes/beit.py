"""The discrete VAE (Ramesh et al. 2021, arXiv:2102.12092) and BEiT (Bao et al. 2021, arXiv:2106.08254).

Optimizer, views and schedules are those of the official BEiT command and of the DALL-E appendix. DALL-E's
learning rate stops falling at two fifths of its run; ours falls over the whole run, in the same order:
KL ramp before temperature, temperature before rate.
"""

import dataclasses

from ..config import DataConfig, OptimConfig, RunConfig
from ..masks import BlockMask
from ..methods.beit import BEiTConfig
from ..methods.codec import CodecConfig
from ..methods.dvae import Anneal, DVAEConfig
from ..views import Jitter, View
from ..vit import SIZES, ViTConfig
from .sizing import Facts, fitting_epochs, fitting_model, fitting_size, measured, published


def dvae(facts: Facts) -> RunConfig:
    """The discrete VAE that makes BEiT's tokens, sized to the data and the machine.

    Paper: Ramesh et al. 2021, A.1 and A.2; sizes and rates of small runs are ours
    Expected: see docs/results.md
    Cost: minutes to hours; --dry-run tells, --budget decides
    """
    codec, side = fitting_codec(facts)
    lr, batch = (1e-3, 256) if facts.gpu else (3e-3, 64)
    return _dvae("dvae", codec, side, facts, lr=lr, batch=batch, epochs=fitting_epochs(facts))


def dvae_nano(facts: Facts) -> RunConfig:
    """The discrete VAE, the smallest that takes the whole path: 64 codes, cells of 4 px, 32 px.

    Paper: Ramesh et al. 2021, made small
    Expected: most codes in use, a falling loss; for tests and docs
    Cost: under a minute on two cores
    """
    config = _dvae("dvae-nano", _nano_codec(facts), 32, facts, lr=6e-3, batch=64, epochs=None)
    return dataclasses.replace(config, steps=200, eval_every="50")


def beit(facts: Facts) -> RunConfig:
    """BEiT that sizes itself to the data and the machine.

    Paper: Bao et al. 2021; sizes and rates of small runs are ours
    Expected: see docs/results.md
    Cost: minutes to hours; --dry-run tells, --budget decides
    """
    size, patch = fitting_size(facts.side)
    model, epochs = fitting_model(facts), fitting_epochs(facts)
    small = model in ("nano", "micro")
    codec, _ = fitting_codec(facts)
    # measured on tiny-imagenet-25 with a dVAE's 512 tokens, ViT 96 x 4, 24,000 images each; held-out loss, hidden
    # tokens right: batch 256 at lr 1.5e-3 4.56, 8.9 %; 64 at 1e-3 4.23, 11.5 %; 64 at 2e-3 4.03, 13.5 %. Runs are
    # fifteen times longer and want a lower rate than the best of these. Up to 24 of 8 x 8 patches are hidden, the
    # paper's 75 of 196
    lr, batch = 1.5e-3, 64 if small else 1024
    return RunConfig(
        recipe="beit",
        method=_beit(size, patch, model, codec, drop_path=0.0 if small else 0.1),
        data=measured(facts),
        optim=dataclasses.replace(_optim(lr, 0.0), warmup_fraction=0.1),
        batch=batch,
        epochs=epochs,
    )


def beit_nano(facts: Facts) -> RunConfig:
    """BEiT, the smallest that takes the whole path: ViT 96 x 4, 32 px, patches of 4, 64 visual tokens.

    Paper: Bao et al. 2021, made small
    Expected: a falling loss; for tests and docs
    Cost: not measured; its tokenizer takes a minute on two cores
    """
    return RunConfig(
        recipe="beit-nano",
        method=_beit(32, 4, "nano", _nano_codec(facts), drop_path=0.0),
        data=measured(facts),
        optim=dataclasses.replace(_optim(2e-3, 0.0), warmup_fraction=0.1),
        batch=64,
        epochs=None,
        steps=200,
    )


def beit_vit_b16_in1k(facts: Facts) -> RunConfig:
    """BEiT ViT-B/16 on ImageNet-1k, 800 epochs at batch 2048, DALL-E's tokenizer.

    Paper: Bao et al. 2021, and the official code's defaults
    Expected: fine-tune 83.2 %
    Cost: 150 H200 hours, half of them the tokenizer's
    """
    return _published("beit-vit-b16-in1k", "base", facts, epochs=800.0, warmup=10.0)


def beit_vit_l16_in1k(facts: Facts) -> RunConfig:
    """BEiT ViT-L/16 on ImageNet-1k, 800 epochs at batch 2048, DALL-E's tokenizer.

    Paper: Bao et al. 2021, and the official code's defaults
    Expected: fine-tune 85.2 %
    Cost: 340 H200 hours
    """
    return _published("beit-vit-l16-in1k", "large", facts, epochs=800.0, warmup=10.0)


def beit_vit_b16_in22k(facts: Facts) -> RunConfig:
    """BEiT ViT-B/16 on ImageNet-22k (14.2 M images), 150 epochs at batch 2048, DALL-E's tokenizer.

    Paper: Bao et al. 2021; official README: 150 epochs, 10,000 warm-up steps
    Expected: fine-tune on ImageNet-1k 83.7 %
    Cost: 310 H200 hours
    """
    return _published("beit-vit-b16-in22k", "base", facts, epochs=150.0, warmup=10_000 * 2048 / 14_197_122)


def beit_vit_l16_in22k(facts: Facts) -> RunConfig:
    """BEiT ViT-L/16 on ImageNet-22k (14.2 M images), 150 epochs at batch 2048, DALL-E's tokenizer.

    Paper: Bao et al. 2021; official README: 150 epochs, 10,000 warm-up steps
    Expected: fine-tune on ImageNet-1k 86.0 %
    Cost: 700 H200 hours
    """
    return _published("beit-vit-l16-in22k", "large", facts, epochs=150.0, warmup=10_000 * 2048 / 14_197_122)


def fitting_codec(facts: Facts) -> tuple[CodecConfig, int]:
    """A tokenizer with one cell for each patch of `fitting_size`, and the side of the images that it reads."""
    size, patch = fitting_size(facts.side)
    stride = min(patch, 8)  # patches of 4, 8, 12, 16 px: cells of 4, 8, 8, 8
    wide = facts.gpu
    codec = CodecConfig(
        vocab=8192 if wide else 512,
        stride=stride,
        channels=facts.channels,
        width=128 if wide else 32,
        groups=4 if wide else stride.bit_length(),
        blocks=2 if wide else 1,
        code_width=128 if wide else 64,
    )
    return codec, size // patch * stride


def _nano_codec(facts: Facts) -> CodecConfig:
    return CodecConfig(vocab=64, stride=4, channels=facts.channels, width=16, groups=3, blocks=1, code_width=64)


def _dvae(
    name: str, codec: CodecConfig, side: int, facts: Facts, *, lr: float, batch: int, epochs: float | None
) -> RunConfig:
    """A run far shorter than 3,000,000 updates: the ramps take more of it, in the paper's order."""
    method = DVAEConfig(
        codec=codec,
        views=(View(side, scale=(0.2, 1.0), twin=side),),
        beta=Anneal(0.0, 6.6, 0.1),
        temperature=Anneal(1.0, 1 / 16, 0.5),
    )
    optim = OptimConfig(
        base_lr=lr,
        base_batch=None,
        min_lr=lr / 80,
        warmup_epochs=0.0,
        schedule="step",
        betas=(0.9, 0.999),
        weight_decay=1e-4,
    )
    return RunConfig(
        recipe=name,
        method=method,
        data=measured(facts),
        optim=optim,
        batch=batch,
        epochs=epochs,
        eval_every="500",  # held-out health needs no labels, and says early whether tokens are worth a second stage
    )


def _beit(size: int, patch: int, model: str, codec: CodecConfig, drop_path: float = 0.1) -> BEiTConfig:
    vit = ViTConfig(
        image_size=size,
        patch=patch,
        channels=codec.channels,
        pos_embed="none",
        rel_pos="shared",
        qkv_bias="qv",
        layer_scale=1e-5 if model == "large" else 0.1,
        drop_path=drop_path,
        mask_token=True,
        init="beit",
        **SIZES[model],
    )
    twin = size // patch * codec.stride
    view = View(size, scale=(0.08, 1.0), jitter=Jitter(), jitter_before_crop=True, twin=twin)
    mask = BlockMask() if size // patch == 14 else BlockMask(smallest=None)
    return BEiTConfig(vit=vit, views=(view,), masks=(mask,), tokenizer=codec)


def _optim(lr: float, warmup: float) -> OptimConfig:
    """The official command: AdamW (0.9, 0.999), absolute rate, weight decay 0.05, global clip 3."""
    return OptimConfig(
        base_lr=lr,
        base_batch=None,
        min_lr=1e-5,
        warmup_epochs=warmup,
        schedule="step",
        betas=(0.9, 0.999),
        weight_decay=0.05,
        clip=3.0,
    )


def _published(name: str, model: str, facts: Facts, *, epochs: float, warmup: float) -> RunConfig:
    data = published(facts)
    if facts.channels == 3 and "in22k" in name:  # the official default; ImageNet's only for ImageNet-1k
        data = DataConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    method = _beit(224, 16, model, CodecConfig(channels=facts.channels))
    return RunConfig(recipe=name, method=method, data=data, optim=_optim(1.5e-3, warmup), batch=2048, epochs=epochs)
