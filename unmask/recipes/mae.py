"""MAE: He et al. 2021, arXiv:2111.06377."""

from ..config import OptimConfig, RunConfig
from ..masks import RandomMask
from ..methods.mae import MAEConfig
from ..views import View
from ..vit import SIZES, ViTConfig
from .sizing import Facts, fitting_epochs, fitting_model, fitting_size, measured, published


def mae(facts: Facts) -> RunConfig:
    """MAE that sizes itself to the data and the machine.

    Paper: He et al. 2021; sizes, rates and decoder on a CPU are ours, measured; on a GPU not yet measured
    Expected: see docs/results.md
    Cost: minutes to hours; --dry-run tells, --budget decides
    """
    size, patch = fitting_size(facts.side)
    model, epochs = fitting_model(facts), fitting_epochs(facts)
    small = model in ("nano", "micro")
    # measured on crops of 18 photographs, 230,000 images each: batch 64 beats 256, lr 1e-3 beats 2e-3, and
    # normalized pixels beat plain ones (k-NN 79 against 72 %)
    decoder = {"width": {"nano": 64, "micro": 128}[model], "depth": 1} if small else {"width": 512, "depth": 8}
    return RunConfig(
        recipe="mae",
        method=_mae(size, patch, model, facts.channels, **decoder),
        data=measured(facts),
        optim=OptimConfig(base_lr=4e-3 if small else 3e-4, warmup_fraction=0.05, betas=(0.9, 0.95)),
        batch=64 if small else 1024,
        epochs=epochs,
    )


def mae_nano(facts: Facts) -> RunConfig:
    """MAE, the smallest that takes the whole path: ViT 96 x 4, 32 px, patches of 4.

    Paper: He et al. 2021, made small
    Expected: a falling loss; for tests and docs
    Cost: under a minute on two cores
    """
    return RunConfig(
        recipe="mae-nano",
        method=_mae(32, 4, "nano", facts.channels, width=64, depth=1),
        data=measured(facts),
        optim=OptimConfig(base_lr=1e-3, warmup_fraction=0.1, betas=(0.9, 0.95)),
        batch=64,
        epochs=None,
        steps=200,
    )


def mae_vit_b16_in1k(facts: Facts) -> RunConfig:
    """MAE ViT-B/16 on ImageNet-1k, 800 epochs at batch 4096.

    Paper: He et al. 2021, Table 8 (1600 epochs for the released weights)
    Expected: fine-tune 83.3 % (1600 epochs: 83.6 %), linear 65.1 % (67.8 %)
    Cost: 43 H200 hours
    """
    return _mae_in1k("mae-vit-b16-in1k", "base", 16, facts)


def mae_vit_l16_in1k(facts: Facts) -> RunConfig:
    """MAE ViT-L/16 on ImageNet-1k, 800 epochs at batch 4096.

    Paper: He et al. 2021, Table 8
    Expected: fine-tune 85.4 % (1600 epochs: 85.9 %), linear 73.7 % (76.0 %)
    Cost: 90 H200 hours
    """
    return _mae_in1k("mae-vit-l16-in1k", "large", 16, facts)


def mae_vit_h14_in1k(facts: Facts) -> RunConfig:
    """MAE ViT-H/14 on ImageNet-1k, 800 epochs at batch 4096.

    Paper: He et al. 2021, Table 8
    Expected: fine-tune 86.9 %, linear 77.2 % (1600 epochs)
    Cost: 210 H200 hours
    """
    return _mae_in1k("mae-vit-h14-in1k", "huge", 14, facts)


def _mae(size: int, patch: int, model: str, channels: int, width: int = 512, depth: int = 8) -> MAEConfig:
    vit = ViTConfig(image_size=size, patch=patch, channels=channels, pos_embed="sincos", init="mae", **SIZES[model])
    return MAEConfig(
        vit=vit,
        views=(View(size, scale=(0.2, 1.0)),),
        masks=(RandomMask(0.75),),
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=width // 32,
    )


def _mae_in1k(name: str, model: str, patch: int, facts: Facts) -> RunConfig:
    """Table 8: AdamW (0.9, 0.95), base rate 1.5e-4, weight decay 0.05, 40 warm-up epochs, no clipping."""
    method = _mae(224, patch, model, facts.channels)
    return RunConfig(recipe=name, method=method, data=published(facts), optim=OptimConfig(), batch=4096, epochs=800.0)
