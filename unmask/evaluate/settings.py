"""How each pre-trained network is fine-tuned: the published tables, and a setting of our own for small ones.

A ViT tells by its parts which method made it: sin-cos positions MAE, relative positions BEiT (a table in each
block: one that has been fine-tuned before, as BEiT on ImageNet-22k), learned ones iBOT, DINO or a ViT.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ..config import OptimConfig
from ..framing import PLAIN, Frame
from ..methods.classify import ClassifyConfig, labelled_view
from ..vit import SIZES, ViTConfig, pair

SHOWN = {False: 60_000, True: 1_000_000}
"""images that a network without a published setting is shown, on a CPU and on a GPU"""
STEPS_PER_EPOCH = 20
"""the published batch is halved, and the rate with it, until an epoch has so many"""


@dataclass(frozen=True)
class FineTuning:
    """One column of the table; all share AdamW (0.9, 0.999), min lr 1e-6, smoothing 0.1, no clipping."""

    lr: float
    """peak, for `batch` images"""
    epochs: float
    warmup: float
    """epochs of the linear warm-up, of `epochs`"""
    layer_decay: float
    drop_path: float
    batch: int = 1024
    weight_decay: float = 0.05
    pool: Literal["cls", "mean"] = "mean"
    """mean: fc_norm of the mean patch; cls: the normalized class token"""
    mix: bool = True
    mild: bool = False
    """the milder augmentation of small networks, which is ours"""
    frame: Frame = PLAIN
    """test images: iBOT's are resized bilinearly, MAE's are not trimmed above 224 px"""
    schedule: Literal["epoch", "step"] = "step"
    """MAE's warm-up and cosine on fractional epochs, or the table of BEiT and iBOT"""


_MAE, _IBOT = Frame(tight_from=225), Frame("bilinear")
PUBLISHED: dict[tuple[str, str], FineTuning] = {
    ("mae", "base"): FineTuning(2e-3, 100, 5, 0.65, 0.1, frame=_MAE, schedule="epoch"),
    ("mae", "large"): FineTuning(4e-3, 50, 5, 0.75, 0.2, frame=_MAE, schedule="epoch"),
    ("mae", "huge"): FineTuning(4e-3, 50, 5, 0.75, 0.3, frame=_MAE, schedule="epoch"),
    ("beit", "base"): FineTuning(4e-3, 100, 20, 0.65, 0.1),
    ("beit", "large"): FineTuning(1e-3, 50, 5, 0.75, 0.2),
    ("beit-22k", "base"): FineTuning(2e-5, 30, 5, 0.85, 0.1, batch=512, weight_decay=1e-8, mix=False),
    ("beit-22k", "large"): FineTuning(2e-5, 30, 5, 0.9, 0.4, batch=512, weight_decay=1e-8, mix=False),
    ("ibot", "small"): FineTuning(4e-3, 200, 20, 0.75, 0.1, pool="cls", frame=_IBOT),
    ("ibot", "base"): FineTuning(4e-3, 100, 20, 0.65, 0.2, pool="cls", frame=_IBOT),
    ("ibot", "large"): FineTuning(4e-3, 50, 5, 0.75, 0.4, pool="cls", frame=_IBOT),
}
"""(family, size) -> fidelity to the official commands"""


def family(vit: ViTConfig) -> str:
    """Whose fine-tuning a network takes."""
    if vit.rel_pos != "none":
        return "beit-22k" if vit.rel_pos == "per-block" else "beit"
    return "mae" if vit.pos_embed == "sincos" else "ibot"


def size_of(vit: ViTConfig) -> str | None:
    """The name of a network's width, depth and heads; None: it has none."""
    shape = {"width": vit.width, "depth": vit.depth, "heads": vit.heads}
    return next((name for name, known in SIZES.items() if known == shape), None)


def fine_tuning(vit: ViTConfig, images: int, *, gpu: bool = False) -> FineTuning:
    """The published setting of a network, or ours for a size that has none, on so many images.

    Ours: 60,000 images shown on a CPU and a million on a GPU (3 to 100 epochs), batch 64, the method's pooling.
    """
    whose = family(vit)
    found = PUBLISHED.get((whose, size_of(vit) or ""))
    if found is None:
        epochs = float(min(max(round(SHOWN[gpu] / images), 3), 100))
        pool = "cls" if whose == "ibot" and not (vit.classes and vit.pool == "mean") else "mean"
        found = FineTuning(
            lr=1e-3,
            epochs=epochs,
            warmup=0.1 * epochs,
            layer_decay=0.75,
            drop_path=0.05,
            batch=64,
            pool=pool,
            mild=True,
        )
    batch = found.batch
    while batch > 32 and images / batch < STEPS_PER_EPOCH:
        batch //= 2
    batch = max(2, min(batch, images // 2 * 2))
    return dataclasses.replace(found, batch=batch, lr=found.lr * batch / found.batch)


def method_of(
    how: FineTuning, vit: ViTConfig, classes: int, mean: tuple[float, ...], size: int | None
) -> ClassifyConfig:
    """The classifier over a network of this configuration, and its view."""
    image = vit.image_size if size is None else size
    network = dataclasses.replace(
        vit,
        image_size=image,
        classes=classes,
        pool=how.pool,
        head_norm="after",
        drop_path=how.drop_path,
        dropout=0.0,
        mask_token=False,
        pos_embed="learned" if vit.pos_embed == "sincos" else vit.pos_embed,  # trained from here on (MAE)
        rel_pos="per-block" if vit.rel_pos == "shared" else vit.rel_pos,
    )
    view = labelled_view(pair(image), mean, mild=how.mild)
    if not how.mix:
        view = dataclasses.replace(view, mix=None)
    return ClassifyConfig(vit=network, views=(view,), layer_decay=how.layer_decay, head_std=2e-5)


def optim_of(how: FineTuning) -> OptimConfig:
    """The optimizer; the warm-up keeps its part of the run where other epochs are asked for."""
    return OptimConfig(
        base_lr=how.lr,
        base_batch=None,
        min_lr=min(1e-6, how.lr),
        warmup_epochs=how.warmup,
        warmup_fraction=how.warmup / how.epochs,
        schedule=how.schedule,
        betas=(0.9, 0.999),
        weight_decay=how.weight_decay,
    )
