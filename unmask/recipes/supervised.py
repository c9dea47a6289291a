"""The ViT with labels, from scratch: Dosovitskiy et al. 2020 (arXiv:2010.11929), trained the modern way.

The paper's own recipe needs far more data than ImageNet-1k (77.9 % there with B/16). Those here are in the
style of DeiT (Touvron et al. 2020, arXiv:2012.12877): strong augmentation, soft labels, drop path.
"""

import dataclasses

from ..config import OptimConfig, RunConfig
from ..methods.classify import ClassifyConfig, labelled_view
from ..vit import SIZES, ViTConfig
from .sizing import Facts, fitting_epochs, fitting_model, fitting_size, measured, published


def supervised(facts: Facts) -> RunConfig:
    """ViT with labels from scratch, sized to the data and the machine: every method's control.

    Paper: DeiT style (Touvron et al. 2020) with mean pooling; sizes, rates and augmentation on a CPU are ours
    Expected: see docs/results.md
    Cost: minutes to hours; --dry-run tells, --budget decides
    """
    size, patch = fitting_size(facts.side)
    model, epochs = fitting_model(facts), fitting_epochs(facts)
    small = model in ("nano", "micro")
    vit = _vit(size, patch, model, facts, drop_path=0.05 if small else 0.1, pool="mean")
    lr, batch = (1e-3, 64) if small else (1e-3, 1024)
    return RunConfig(
        recipe="supervised",
        method=ClassifyConfig(vit=vit, views=(labelled_view(size, facts.mean, mild=small),)),
        data=measured(facts),
        optim=_optim(lr, None, weight_decay=0.05, fraction=0.1),
        batch=batch,
        epochs=epochs,
    )


def supervised_nano(facts: Facts) -> RunConfig:
    """ViT with labels, the smallest that takes the whole path: ViT 96 x 4, 32 px, patches of 4.

    Paper: DeiT style (Touvron et al. 2020), made small
    Expected: a falling loss; for tests and docs
    Cost: under a minute on two cores
    """
    vit = _vit(32, 4, "nano", facts, drop_path=0.0, pool="mean")
    return RunConfig(
        recipe="supervised-nano",
        method=ClassifyConfig(vit=vit, views=(labelled_view(32, facts.mean, mild=True),)),
        data=measured(facts),
        optim=_optim(2e-3, None, weight_decay=0.05, fraction=0.1),
        batch=64,
        epochs=None,
        steps=200,
    )


def supervised_vit_b16_in1k(facts: Facts) -> RunConfig:
    """ViT-B/16 on ImageNet-1k with labels from scratch, 300 epochs at batch 4096: MAE's modern baseline.

    Paper: He et al. 2021, A.2 and Table 11, in DeiT's style; not the original recipe (Dosovitskiy et al.: 77.9 %)
    Expected: 82.3 % (the moving average)
    Cost: 60 H200 hours
    """
    vit = _vit(224, 16, "base", facts, drop_path=0.1, pool="cls")
    view = dataclasses.replace(labelled_view(224, facts.mean), erase=0.0)
    return RunConfig(
        recipe="supervised-vit-b16-in1k",
        method=ClassifyConfig(vit=vit, views=(view,), average=0.9999),
        data=published(facts),
        optim=_optim(1e-4, 256, weight_decay=0.3, epochs=20.0, betas=(0.9, 0.95)),
        batch=4096,
        epochs=300.0,
    )


def _vit(size: int, patch: int, model: str, facts: Facts, **fields) -> ViTConfig:
    return ViTConfig(
        image_size=size, patch=patch, channels=facts.channels, classes=facts.classes, **fields, **SIZES[model]
    )


def _optim(
    lr: float,
    batch: int | None,
    *,
    weight_decay: float,
    epochs: float = 0.0,
    fraction: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> OptimConfig:
    return OptimConfig(
        base_lr=lr,
        base_batch=batch,
        warmup_epochs=epochs,
        warmup_fraction=fraction,
        betas=betas,
        weight_decay=weight_decay,
    )
