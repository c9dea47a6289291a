"""iBOT (Zhou et al. 2021, arXiv:2111.07832) and DINO (Caron et al. 2021, arXiv:2104.14294).

Sources of the constants: the README command of bytedance/ibot and the defaults of its main_ibot.py; the
"boosting" README command of facebookresearch/dino and the defaults of its main_dino.py. For B and L the
released args.txt files were not read: their epochs and scales are the paper's, and freezing the last layer
for 3 epochs is a user's report (mahmoodlab/UNI issue 47).
"""

import dataclasses
import math

from ..config import DataConfig, OptimConfig, RunConfig
from ..methods.ibot import GLOBAL_1, GLOBAL_2, LOCAL, MASK, IBOTConfig
from ..views import Blur, View
from ..vit import SIZES, ViTConfig
from .sizing import Facts, fitting_epochs, fitting_model, fitting_size, measured, published


def ibot(facts: Facts) -> RunConfig:
    """Self-distillation by iBOT, sized to the data and the machine.

    Paper: Zhou et al. 2021; sizes, prototypes, momentum and schedules of small runs are ours
    Expected: see docs/results.md
    Cost: minutes to hours; --dry-run tells, --budget decides
    """
    return _self_distilled("ibot", facts, masked=True)


def ibot_nano(facts: Facts) -> RunConfig:
    """iBOT, the smallest that takes the whole path: ViT 96 x 4, 32 px, patches of 4, two local crops.

    Paper: Zhou et al. 2021, made small
    Expected: a falling loss; for tests and docs
    Cost: under a minute on two cores
    """
    return _self_distilled_nano("ibot-nano", facts, masked=True)


def ibot_vit_s16_in1k(facts: Facts) -> RunConfig:
    """The iBOT ViT-S/16 on ImageNet-1k, 800 epochs at batch 1024.

    Paper: Zhou et al. 2021; the command in the README of bytedance/ibot, else the defaults of main_ibot.py
    Expected: k-NN 75.2 %, linear 77.9 %, fine-tune 82.3 %
    Cost: 93 H200 hours
    """
    return _ibot_in1k("ibot-vit-s16-in1k", "small", facts, epochs=800, globals_from=0.25, norm_last_layer=False)


def ibot_vit_b16_in1k(facts: Facts) -> RunConfig:
    """The iBOT ViT-B/16 on ImageNet-1k, 400 epochs at batch 1024.

    Paper: Zhou et al. 2021, section 3.2 and appendix; the args.txt of the released weights was not read
    Expected: k-NN 77.1 %, linear 79.5 %, fine-tune 84.0 %
    Cost: 172 H200 hours
    """
    return _ibot_in1k("ibot-vit-b16-in1k", "base", facts, epochs=400, globals_from=0.32, freeze=3.0)


def ibot_vit_l16_in1k(facts: Facts) -> RunConfig:
    """The iBOT ViT-L/16 on ImageNet-1k, 250 epochs at batch 1024.

    Paper: Zhou et al. 2021, section 3.2 and appendix; the args.txt of the released weights was not read
    Expected: k-NN 78.0 %, linear 81.0 %, fine-tune 84.8 %
    Cost: 375 H200 hours
    """
    return _ibot_in1k("ibot-vit-l16-in1k", "large", facts, epochs=250, globals_from=0.32, freeze=3.0)


def dino(facts: Facts) -> RunConfig:
    """DINO that sizes itself: `ibot` with no masks and no patch term, the field's baseline.

    Paper: Caron et al. 2021; sizes, prototypes, momentum and schedules of small runs are ours
    Expected: see docs/results.md
    Cost: minutes to hours; --dry-run tells, --budget decides
    """
    return _self_distilled("dino", facts, masked=False)


def dino_nano(facts: Facts) -> RunConfig:
    """DINO, the smallest that takes the whole path: ViT 96 x 4, 32 px, patches of 4, two local crops.

    Paper: Caron et al. 2021, made small
    Expected: a falling loss; for tests and docs
    Cost: under a minute on two cores
    """
    return _self_distilled_nano("dino-nano", facts, masked=False)


def dino_vit_s16_in1k(facts: Facts) -> RunConfig:
    """DINO ViT-S/16 on ImageNet-1k, 300 epochs at batch 1024.

    Paper: Caron et al. 2021; the README's "boosting" command, else the defaults of main_dino.py
    Expected: k-NN 73.3 %, linear 76.0 %
    Cost: 30 H200 hours
    """
    views = tuple(dataclasses.replace(view, scale=(0.4, 1.0)) for view in (GLOBAL_1, GLOBAL_2))
    method = IBOTConfig(
        vit=_vit(224, 16, "small", facts.channels, drop_path=0.1),
        views=(*views, dataclasses.replace(LOCAL, scale=(0.05, 0.4), count=8)),
        masks=(),
        prototypes=65536,
        norm_last_layer=False,
    )
    return _run("dino-vit-s16-in1k", method, published(facts), _optim(), batch=1024, epochs=300.0)


def _ibot_in1k(
    name: str,
    model: str,
    facts: Facts,
    epochs: float,
    globals_from: float,
    norm_last_layer: bool = True,
    freeze: float = 1.0,
) -> RunConfig:
    """README: 10 locals, shared head of 8192, temperatures .04 to .07 in 30 epochs, masks of 0 or .3 +- .2."""
    views = tuple(dataclasses.replace(view, scale=(globals_from, 1.0)) for view in (GLOBAL_1, GLOBAL_2))
    method = IBOTConfig(
        vit=_vit(224, 16, model, facts.channels, drop_path=0.1),
        views=(*views, dataclasses.replace(LOCAL, scale=(0.05, globals_from))),
        norm_last_layer=norm_last_layer,
        freeze_last_layer=freeze,
    )
    return _run(name, method, published(facts), _optim(), batch=1024, epochs=float(epochs))


def _self_distilled(name: str, facts: Facts, masked: bool) -> RunConfig:
    """On a GPU the paper's method on a fitting ViT; on a CPU what half an hour of one thread can teach."""
    return (_on_gpu if facts.gpu else _on_cpu)(name, facts, masked)


def _on_gpu(name: str, facts: Facts, masked: bool) -> RunConfig:
    size, patch = fitting_size(facts.side)
    model = fitting_model(facts)
    method = IBOTConfig(
        vit=_vit(size, patch, model, facts.channels, drop_path=0.1),
        views=_views(size, patch, locals_=10),
        masks=(MASK, MASK) if masked else (),
        norm_last_layer=model != "small",
        warmup_temperature_fraction=0.3,
        freeze_fraction=0.05,
    )
    optim = dataclasses.replace(_optim(), warmup_fraction=0.1)
    return _run(name, method, measured(facts), optim, batch=1024, epochs=fitting_epochs(facts))


def _on_cpu(name: str, facts: Facts, masked: bool) -> RunConfig:
    """Settings of small runs are ours, by the rows in docs/results.md.

    An image costs eleven times what it costs an MAE (whole crops, twice, and a teacher), so the ViT is the
    nano one and crops have three quarters of an MAE's side. They are gentler, as small images hold less:
    DINO's scales, and a blur in proportion to the pixels. The head's first weights keep the lengths that the
    paper's head of 2048 keeps. The temperatures are about half of the paper's, and KoLeo (DINOv2) holds the
    images apart: without both, short runs fall into the uniform distribution.
    """
    size, patch = fitting_size(facts.side)
    size = round(0.75 * size / patch) * patch
    method = IBOTConfig(
        vit=_vit(size, patch, "nano", facts.channels, drop_path=0.0),
        views=_gentle(_views(size, patch, locals_=6), size),
        masks=(MASK, MASK) if masked else (),
        prototypes=512,
        head_width=256,
        bottleneck=64,
        head_std=0.02 * math.sqrt(2048 / 256),
        norm_last_layer=True,
        warmup_temperature=0.02,
        teacher_temperature=0.03,
        patch_warmup_temperature=0.02,
        patch_teacher_temperature=0.03,
        warmup_temperature_fraction=0.3,
        momentum=0.99,
        koleo_weight=0.1,
        freeze_fraction=0.05,
    )
    optim = dataclasses.replace(_optim(2e-3), warmup_fraction=0.1)
    return _run(name, method, measured(facts), optim, batch=64, epochs=fitting_epochs(facts))


def _gentle(views: tuple[View, ...], size: int) -> tuple[View, ...]:
    """DINO's scales, and blurs that are as wide in the picture as 2 of 224 pixels are."""
    first, second, local = (
        dataclasses.replace(view, blur=Blur(view.blur.p, (0.1, max(0.2, 2.0 * size / 224))))
        for view in views
        if view.blur
    )
    whole = {"scale": (0.4, 1.0)}
    return (
        dataclasses.replace(first, **whole),
        dataclasses.replace(second, **whole),
        dataclasses.replace(local, scale=(0.05, 0.4)),
    )


def _self_distilled_nano(name: str, facts: Facts, masked: bool) -> RunConfig:
    method = IBOTConfig(
        vit=_vit(32, 4, "nano", facts.channels, drop_path=0.0),
        views=_views(32, 4, locals_=2),
        masks=(MASK, MASK) if masked else (),
        prototypes=256,
        head_width=128,
        bottleneck=64,
        norm_last_layer=True,
        momentum=0.98,
        warmup_temperature_epochs=1,
        freeze_last_layer=0.0,
    )
    config = _run(
        name, method, measured(facts), dataclasses.replace(_optim(2e-3), warmup_fraction=0.1), batch=64, epochs=1.0
    )
    return dataclasses.replace(config, epochs=None, steps=150)


def _run(
    name: str, method: IBOTConfig, data: DataConfig, optim: OptimConfig, *, batch: int, epochs: float
) -> RunConfig:
    return RunConfig(recipe=name, method=method, data=data, optim=optim, batch=batch, epochs=epochs)


def _optim(base_lr: float = 5e-4) -> OptimConfig:
    """AdamW (0.9, 0.999), 5e-4 per 256 images, weight decay .04 to .4, each tensor clipped at 3."""
    return OptimConfig(
        base_lr=base_lr,
        min_lr=1e-6,
        warmup_epochs=10.0,
        schedule="step",
        betas=(0.9, 0.999),
        weight_decay=0.04,
        weight_decay_end=0.4,
        clip=3.0,
        clip_by="tensor",
    )


def _vit(size: int, patch: int, model: str, channels: int, drop_path: float) -> ViTConfig:
    return ViTConfig(
        image_size=size, patch=patch, channels=channels, pos_resize="factor", drop_path=drop_path, **SIZES[model]
    )


def _views(size: int, patch: int, locals_: int) -> tuple[View, ...]:
    """The recipe's crops for images of another size; locals keep 96 of 224 pixels, in whole patches."""
    local = max(2, round(size / patch * 96 / 224)) * patch
    return (
        dataclasses.replace(GLOBAL_1, size=size),
        dataclasses.replace(GLOBAL_2, size=size),
        dataclasses.replace(LOCAL, size=local, count=locals_),
    )
