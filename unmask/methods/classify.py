"""Learning from labels: a ViT from scratch (Dosovitskiy et al. 2020) or fine-tuned (He et al. 2021, A.1).

A linear head on the class token, or on fc_norm of the mean patch, is trained with the network under it. Labels
are soft: smoothed, and mixed as their images are. What was pre-trained is trained gently, the more so the
nearer a layer is to the pixels.

    x, y        images and classes, each mixed with its neighbor     image, label, own = lambda
    t(y)      = (1 - e) onehot(y) + e / K                            smoothing e, once, inside the mixture
    t         = lambda t(y) + (1 - lambda) t(y of the neighbor)      soft_targets
    z         = W pool(f(x)) + b                                     vit.logits
    loss      = mean of - t . log softmax(z)                         soft_cross_entropy
    or        = mean of - t . log s(z) - (1 - t) . log s(-z)         binary_cross_entropy, s the sigmoid (ViT)
    lr_i      = lr * decay ^ (L + 1 - i)                             layer_decay, i = 0 ... L + 1

What this file does differently: images are mixed by the data plan, with their neighbors (mixing.py), so that
a step is the same however it is divided over devices.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ..config import MethodConfig
from ..layer_decay import layer_decay_groups
from ..mixing import Mix, neighbors
from ..randaugment import RandAugment
from ..views import View
from ..vit import ViT, ViTConfig, pair
from .base import Batch, Group, Method, Output, Progress, ema

NO_DECAY = ("pos_embed", "cls_token")
"""parameters that the official fine-tuning never decays, beside vectors and biases"""


def labelled_view(size: int | tuple[int, int], mean: tuple[float, ...], *, mild: bool = False) -> View:
    """DeiT's view, which the fine-tuning of MAE, BEiT and iBOT shares.

    Args:
        size: as for View.
        mean: of the images, in [0, 1]: what RandAugment fills edges with.
        mild: half of it, for small networks that see an image some tens of times: ours.
    """
    random = RandAugment(magnitude=5.0 if mild else 9.0, fill=tuple(round(255 * m) for m in mean))
    if mild:
        return View(size, scale=(0.2, 1.0), randaugment=random, mix=Mix(p=0.5, share=2))
    return View(size, scale=(0.08, 1.0), randaugment=random, erase=0.25, mix=Mix())


@dataclass(frozen=True)
class ClassifyConfig(MethodConfig):
    """Defaults: a ViT-B/16 as DeiT and the fine-tuning of MAE, BEiT and iBOT see images."""

    # --- what changes results ---
    vit: ViTConfig = ViTConfig(classes=1000, drop_path=0.1)
    """the network, with its head"""
    views: tuple[View, ...] = (labelled_view(224, (0.485, 0.456, 0.406)),)
    """one view: random resized crop, flip, RandAugment, erasing, mixup and CutMix"""
    smoothing: float = 0.1
    """part of a label that is spread over all classes"""
    layer_decay: float = 1.0
    """each layer learns by this much slower than the one above; fine-tuning ViT-B 0.65, L 0.75; 1: all alike"""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: one distribution over the classes; sigmoid: yes or no to each class, summed (ViT)"""
    head_std: float | None = None
    """deviation of the head's first weights; fine-tuning 2e-5; None: as the rest of the network"""
    head_bias: float | None = None
    """value of the head's first biases; ViT -10: that no class is there; None: 0"""
    average: float | None = None
    """the network to use is a moving average of the trained one that keeps this much a step; None: it is not"""

    def grids(self) -> tuple[tuple[int, int], ...]:
        return ()

    def build(self) -> "Classify":
        return Classify(self)


class Classify(Method):
    """A ViT with a head, and perhaps its moving average."""

    def __init__(self, config: ClassifyConfig):
        super().__init__()
        if len(config.views) != 1 or config.views[0].count != 1 or config.masks:
            raise ValueError(f"learning from labels takes one view and no mask, not {config.views}, {config.masks}")
        if pair(config.views[0].size) != config.vit.image_hw:
            raise ValueError(
                f"the view is {config.views[0].size} px and the ViT expects {config.vit.image_size}; "
                f"give both --method.views.0.size and --method.vit.image-size"
            )
        if config.vit.classes < 2:
            raise ValueError(f"{config.vit.classes} classes; a classifier needs images of at least two classes")
        self.config = config
        self.vit = ViT(config.vit)
        head = self.vit.head
        assert isinstance(head, nn.Linear)
        if config.head_std is not None:
            nn.init.trunc_normal_(head.weight, std=config.head_std)
            nn.init.zeros_(head.bias)
        if config.head_bias is not None:
            nn.init.constant_(head.bias, config.head_bias)
        self.averaged = copy.deepcopy(self.vit).requires_grad_(False) if config.average is not None else None

    def forward(self, batch: Batch, at: Progress) -> Output:
        (image,), label = batch.views, batch.label
        if label is None:
            raise ValueError("learning from labels met a batch without labels")
        logits = self.vit.logits(image).float()
        target = soft_targets(label, batch.own, self.config.vit.classes, self.config.smoothing)
        right = logits.detach().argmax(1) == target.argmax(1)  # where images are mixed: of the larger share
        loss = soft_cross_entropy if self.config.loss == "softmax" else binary_cross_entropy
        return Output(loss(logits, target), {"top1": right.float().mean()})

    def parameter_groups(self) -> list[Group]:
        groups = layer_decay_groups(self.vit, self.config.vit.depth, self.config.layer_decay, NO_DECAY)
        return [group._replace(names=[f"vit.{name}" for name in group.names]) for group in groups]

    def after_step(self, at: Progress, sums: dict[str, Tensor]) -> None:
        if self.averaged is not None and self.config.average is not None:
            ema(self.averaged, self.vit, self.config.average)

    def blocks(self) -> list[nn.Module]:
        return [*self.vit.blocks, *(self.averaged.blocks if self.averaged is not None else ())]

    def backbone(self) -> ViT:
        return self.vit if self.averaged is None else self.averaged


def soft_targets(
    label: Int[Tensor, "B"], own: Float[Tensor, "B"] | None, classes: int, smoothing: float
) -> Float[Tensor, "B K"]:
    """Smooth the labels, once, and mix them with their neighbors' (timm's `mixup_target`).

    Args:
        label: 0 ... K-1.
        own: share of an image's own label; None: all.
        classes: K.
        smoothing: part that is spread evenly over all K classes.
    """
    target = torch.full((len(label), classes), smoothing / classes, device=label.device)
    target.scatter_(1, label[:, None], 1 - smoothing + smoothing / classes)
    return target if own is None else torch.lerp(neighbors(target), target, own[:, None])


def soft_cross_entropy(logits: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean over images of - t . log softmax(z), in fp32 (timm's SoftTargetCrossEntropy)."""
    return -(target * logits.float().log_softmax(1)).sum(1).mean()


def binary_cross_entropy(logits: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean over images of the sum over classes of - t . log s(z) - (1 - t) . log s(-z), in fp32, s the sigmoid.

    Source: what ViT was trained by (google-research/vision_transformer, issue 34).
    """
    return binary_cross_entropy_with_logits(logits.float(), target, reduction="none").sum(1).mean()
