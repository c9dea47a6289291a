"""iBOT: image BERT pre-training with online tokenizer (Zhou et al. 2021, arXiv:2111.07832); DINO too.

A student learns to say of an image what its teacher says; the teacher is a moving average of the
student. Both assign tokens softly to K prototypes. The [CLS] token of every crop must match the
teacher's of the *other* global crop (DINO, Caron et al. 2021, arXiv:2104.14294), and each hidden
patch must match what the teacher sees *there*: the teacher is the tokenizer that BEiT had to buy.

    u, v = two crops of x;  m_u, m_v block masks          globals, masks      [B C h w], [B N]
    u^   = u with m_u replaced by e                       hidden=mask         student only, e = mask_token
    s    = student(u^), student(v^), student(locals)      [CLS] of all crops, patches of the hidden
    t    = teacher(u), teacher(v)                         unmasked, no gradient
    H(t, s) = - softmax((t - C) / tau_t) log softmax(s / tau_s)      teacher and student temperatures
    loss_cls   = mean over pairs q != v of H(t_q, s_v)               [CLS], locals among the v
    loss_patch = mean over images of sum m H(t, s) / max(sum m, 1)   same view; whole images add 0
    theta_t <- l theta_t + (1 - l) theta_s                           momentum, 0.996 -> 1
    C  <- m C  + (1 - m)  mean of t_cls                   center             all images of all ranks
    C' <- m' C' + (1 - m') mean of t_patch                patch_center       all patches, hidden or not

What this file does differently: the student's last block is finished for [CLS] and hidden patches alone,
and logits are theirs. The second center needs all patches of the teacher, but only their mean, which is
the logits of the mean direction. The order is the original's: centers are used, then updated; the last
layer's gradient is dropped after clipping; the teacher moves after the optimizer. A temperature warm-up
longer than the run, where the original crashes, is shortened to it. Not here, as they need more than
one readable line: Sinkhorn centering (it iterates over all ranks inside the loss) and DINOv2's
stratified masks (they look at the whole batch; our masks are a function of one sample).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

from ..config import MethodConfig
from ..masks import BlockMask, MaskPolicy
from ..schedules import EveryEpochs, StepCosine
from ..views import Blur, Jitter, View
from ..vit import ViT, ViTConfig, places_of
from . import distill
from .base import Batch, Method, Output, Progress, ema
from .ibot_head import Act, Head, Norm

JITTER = Jitter(0.4, 0.4, 0.2, 0.1, p=0.8)
"""saturation 0.2, hue 0.1: `main_ibot.py`, `main_dino.py`"""
GLOBAL_1 = View(224, scale=(0.25, 1.0), jitter=JITTER, gray=0.2, blur=Blur(p=1.0))
GLOBAL_2 = View(224, scale=(0.25, 1.0), jitter=JITTER, gray=0.2, blur=Blur(p=0.1), solarize=0.2)
LOCAL = View(96, scale=(0.05, 0.25), jitter=JITTER, gray=0.2, blur=Blur(p=0.5), count=10)
MASK = BlockMask(ratios=((0.0, 0.0), (0.3, 0.2)), smallest=None)


@dataclass(frozen=True)
class IBOTConfig(MethodConfig):
    """Defaults: ViT-S/16 at 224 px as the README of bytedance/ibot trains it. DINO: `masks=()`."""

    pools, probe = ("cls",), "ibot"
    vit: ViTConfig = ViTConfig(width=384, heads=6, pos_resize="factor", drop_path=0.1)
    """the backbone; drop path and the mask token are the student's alone"""
    views: tuple[View, ...] = (GLOBAL_1, GLOBAL_2, LOCAL)
    """the first `globals` crops are the teacher's, all are the student's; S: scales 0.25-1 and 0.05-0.25"""
    masks: tuple[MaskPolicy, ...] = (MASK, MASK)
    """one a global crop: half of the crops stay whole, the others hide 10 to 50 %. Empty: DINO"""
    globals: int = 2
    """global crops, counted after a view's `count`"""
    prototypes: int = 8192
    """K; iBOT 8192, DINO 65536"""
    shared_head: bool = True
    """one set of prototypes for [CLS] and patches; the paper's runs. The original's default is False"""
    shared_head_teacher: bool | None = None
    """the same of the teacher; None: as the student. True with `shared_head` False is the original's
    default and a trap: the student's patch prototypes never reach the teacher"""
    patch_prototypes: int | None = None
    """K of the patches' own prototypes, when the head is not shared; None: as `prototypes`"""
    head_width: int = 2048
    """hidden units of the head's MLP"""
    head_layers: int = 3
    """linear layers of the head's MLP"""
    head_std: float = 0.02
    """of the MLP's first weights; a narrower head needs more, 0.02 sqrt(2048 / head_width)"""
    head_act: Act = "gelu"
    """its nonlinearity"""
    head_norm: Norm = "none"
    """its normalization; bn takes its statistics over the tokens that are predicted"""
    bottleneck: int = 256
    """features in which tokens and prototypes are compared"""
    norm_last_layer: bool = False
    """keep prototypes at length 1: steadier, a little worse; ViT-S False, ViT-B and -L True"""
    student_temperature: float = 0.1
    """tau_s, of [CLS] and patches"""
    warmup_temperature: float = 0.04
    """teacher's temperature in the first epoch; lower is sharper and safer"""
    teacher_temperature: float = 0.07
    """tau_t of [CLS] after the warm-up; above 0.07 the original's authors saw instability"""
    patch_warmup_temperature: float = 0.04
    """the same two for patches"""
    patch_teacher_temperature: float = 0.07
    """tau'_t after the warm-up"""
    warmup_temperature_epochs: int = 30
    """epochs from one to the other; shortened to the run where that is shorter"""
    warmup_temperature_fraction: float | None = None
    """most of the run that this takes; self-sizing recipes 0.3. None: no bound"""
    patch_start_epoch: int = 0
    """epochs without masks at the beginning, before the patch temperature warms up; ViT 0, Swin 50"""
    center_momentum: float = 0.9
    """m; 1 would keep the center at 0"""
    patch_center_momentum: float = 0.9
    """m'"""
    momentum: float = 0.996
    """l of the first step; a cosine takes it to `momentum_end`. 0.9995 for batches of 256"""
    momentum_end: float = 1.0
    """l after the last step"""
    teacher_every: float = 0.0
    """epochs after which the teacher becomes the student's copy, instead of an average; a control. 0: average"""
    cls_weight: float = 1.0
    """lambda_1"""
    patch_weight: float = 1.0
    """lambda_2"""
    koleo_weight: float = 0.0
    """spread the student's global [CLS] features within a micro-batch; DINOv2 0.1, iBOT 0"""
    freeze_last_layer: float = 1.0
    """epochs in which the prototypes stay as they began; ViT-B is said to use 3. Less than the run!"""
    freeze_fraction: float | None = None
    """most of the run that this takes; self-sizing recipes 0.05. None: no bound"""

    def grids(self) -> tuple[tuple[int, int], ...]:
        return (self.vit.grid,) * len(self.masks)

    def build(self) -> "IBOT":
        return IBOT(self)

    def traps(self, epochs: float) -> list[str]:
        """The original's defaults that hurt short runs, as far as these settings have them."""
        unled = bool(self.masks) and not self.shared_head and bool(self.shared_head_teacher)
        return distill.traps(epochs, *self.lengths(epochs), self.patch_start_epoch if self.masks else 0, unled)

    def own_patches(self, shared: bool | None) -> int | None:
        """Patch prototypes of a head: None when it has none of its own."""
        shared = self.shared_head if shared is None else shared
        return None if shared or not self.masks else self.patch_prototypes or self.prototypes

    def lengths(self, epochs: float) -> tuple[float, float]:
        """Epochs in which the temperature rises and in which the prototypes rest, in a run of this length."""
        return (
            distill.within(self.warmup_temperature_epochs, self.warmup_temperature_fraction, epochs),
            distill.within(self.freeze_last_layer, self.freeze_fraction, epochs),
        )

    def temperatures(self, at: Progress) -> tuple[float, float]:
        """The teacher's temperatures of [CLS] and patches in this epoch."""
        warmup, start = self.lengths(at.epochs)[0], self.patch_start_epoch
        return (
            distill.warmed_up(self.warmup_temperature, self.teacher_temperature, warmup, at),
            distill.warmed_up(self.patch_warmup_temperature, self.patch_teacher_temperature, warmup, at, start),
        )


class Network(nn.Module):
    """Backbone and head, of the student or of the teacher; parameters correspond by name."""

    def __init__(self, config: IBOTConfig, teacher: bool):
        super().__init__()
        masked = bool(config.masks) and not teacher
        self.vit = ViT(replace(config.vit, mask_token=masked, drop_path=0.0 if teacher else config.vit.drop_path))
        self.head = Head(
            config.vit.width,
            config.prototypes,
            config.own_patches(config.shared_head_teacher if teacher else config.shared_head),
            hidden=config.head_width,
            bottleneck=config.bottleneck,
            layers=config.head_layers,
            std=config.head_std,
            act=config.head_act,
            norm=config.head_norm,
            unit=config.norm_last_layer,
        )


class IBOT(Method):
    """Student and teacher; with no masks it is DINO."""

    center: Float[Tensor, "K"]
    patch_center: Float[Tensor, "K2"]

    def __init__(self, config: IBOTConfig):
        super().__init__()
        distill.check_crops(config.views, config.globals, len(config.masks), config.vit)
        own = config.own_patches(config.shared_head_teacher) or config.prototypes
        distill.check_heads(config.own_patches(config.shared_head) or config.prototypes, own)
        self.config = config
        self.mask_start = config.patch_start_epoch
        self.student = Network(config, teacher=False)
        self.teacher = Network(config, teacher=True).requires_grad_(False)
        start = self.student.state_dict()
        self.teacher.load_state_dict(
            # a patch layer that only the teacher has begins as the student's shared one
            {k: start[k if k in start else k.replace("patch_layer", "last_layer")] for k in self.teacher.state_dict()}
        )
        self.patch_loss = distill.PatchLoss()
        self.register_buffer("center", torch.zeros(config.prototypes))
        self.register_buffer("patch_center", torch.zeros(own))

    def forward(self, batch: Batch, at: Progress) -> Output:
        n, b = self.config.globals, len(batch.views[0])
        image, locals_ = torch.cat(batch.views[:n]), batch.views[n:]
        mask, hidden, weight = self.hide(batch, at)

        vit, prefix = self.student.vit, 1 + self.config.vit.registers
        places = torch.cat([vit.cls_places(image), places_of(hidden, math.prod(self.config.vit.grid), prefix)])
        tokens = vit.at(image, places, hidden=mask)  # masked, for [CLS] as well
        cls, patches = [tokens[: n * b]], tokens[n * b :]
        for _, same in groupby(locals_, key=lambda crop: crop.shape):  # crops of one size in one pass
            crops = torch.cat(list(same))
            cls.append(vit.at(crops, vit.cls_places(crops)))
        z = self.student.head.embed(torch.cat([*cls, patches]))  # [V*B + M, d] all that is predicted
        v = len(batch.views) * b
        with cached():  # prototypes are normalized once for all that meets them
            student = self.student.head.cls(z[:v]).unflatten(0, (-1, b)), self.student.head.patches(z[v:])
            teacher, sums = self.teach(image, hidden)
        loss, metrics, seen = self.loss(student, (teacher[0].unflatten(0, (-1, b)), teacher[1]), weight, at)
        if self.config.koleo_weight:
            spread = torch.stack([distill.koleo(view) for view in cls[0].chunk(n)]).sum()
            loss, metrics["loss_koleo"] = loss + self.config.koleo_weight * spread, spread.detach()
        return Output(loss, metrics, sums | seen)

    def hide(
        self, batch: Batch, at: Progress
    ) -> tuple[Bool[Tensor, "GB N"] | None, Int[Tensor, "M"], Float[Tensor, "M"]]:
        """Masks of all global crops, flat indices of their hidden patches, and each patch's weight.

        The weight is 1 / (hidden patches of its image) / images: whole images count in the mean.
        """
        device = batch.views[0].device
        if not batch.masks:
            return None, torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(0, device=device)
        b, n = batch.masks[0].shape
        mask = torch.cat(batch.masks)
        hidden = torch.cat([index + i * b * n for i, index in enumerate(batch.hidden)])
        if at.epoch < self.mask_start:
            mask, hidden = torch.zeros_like(mask), hidden[:0]
        share = 1 / (mask.sum(1).clamp(min=1) * len(mask))
        return mask, hidden, share[hidden // n]

    @torch.no_grad()
    def teach(
        self, image: Float[Tensor, "GB C h w"], hidden: Int[Tensor, "M"]
    ) -> tuple[tuple[Float[Tensor, "GB K"], Float[Tensor, "M K2"]], dict[str, Tensor]]:
        """The teacher's logits of [CLS] and hidden patches, and the sums that move the centers.

        Sums are over images: of the [CLS] logits, and of the mean logits of all patches, hidden or not.
        """
        vit, head = self.teacher.vit, self.teacher.head
        tokens = vit(image) if self.config.masks else None
        cls = head.embed(vit.at(image, vit.cls_places(image)) if tokens is None else tokens.prefix[:, 0])
        sums = {"images": torch.full((), float(len(image)), device=image.device)}
        z = cls[:, None] if tokens is None else head.embed(tokens.patches)
        with torch.autocast(image.device.type, enabled=False):
            sums["cls"] = head.cls(cls.sum(0, keepdim=True))[0]
            if tokens is not None:
                sums["patch"] = head.patches(z.mean(1).sum(0, keepdim=True))[0]
        return (head.cls(cls), head.patches(z.flatten(0, 1)[hidden])), sums

    def loss(
        self,
        student: tuple[Float[Tensor, "V B K"], Float[Tensor, "M K2"]],
        teacher: tuple[Float[Tensor, "G B K"], Float[Tensor, "M K2"]],
        weight: Float[Tensor, "M"],
        at: Progress,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor], dict[str, Tensor]]:
        """Both losses, weighted and added, what to log and `observed`, from the logits of [CLS] and hidden patches.

        The first views of the student are the teacher's; centers are those before this step.
        """
        config = self.config
        tau, patch_tau = config.temperatures(at)
        with torch.autocast(weight.device.type, enabled=False):
            sharp = (teacher[0].float() - self.center) / tau
            t = sharp.softmax(-1)
            s = (student[0].float() / config.student_temperature).log_softmax(-1)
            loss = loss_cls = distill.cls_loss(t, s) * config.cls_weight
            metrics = {"loss_cls": loss_cls.detach()}
            other = s[: len(t)].roll(1, 0) if len(t) > 1 else s[1:2]  # the next global crop, or the first local one
            seen = distill.observed(t.flatten(0, 1), sharp.flatten(0, 1), other.flatten(0, 1))
            if config.masks:
                of_patches = teacher[1], self.patch_center, patch_tau, student[1], config.student_temperature, weight
                loss_patch, observed = self.patch_loss(*of_patches)
                loss_patch = loss_patch * config.patch_weight
                loss, metrics["loss_patch"] = loss_cls + loss_patch, loss_patch.detach()
                seen |= observed
        return loss, metrics, seen

    def before_step(self, at: Progress) -> None:
        """Drop the prototypes' gradients in the first epochs: None, so that AdamW neither moves nor decays."""
        if at.epoch < self.config.lengths(at.epochs)[1]:
            for parameter in self.student.head.last():
                parameter.grad = None

    def after_step(self, at: Progress, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move the teacher after the student, then the centers, from sums over all ranks; tell the teacher's health."""
        every, average = self.config.teacher_every, StepCosine(self.config.momentum, 0.0, self.config.momentum_end)
        ema(self.teacher, self.student, (EveryEpochs(every) if every else average)(at))
        found = distill.health(sums, {"": self.center, "patch_": self.patch_center})
        self.update_centers(sums)
        return found

    @torch.no_grad()
    def update_centers(self, sums: dict[str, Tensor]) -> None:
        """C <- m C + (1 - m) mean, from sums of logits over images and the number of these."""
        self.center.lerp_(sums["cls"] / sums["images"], 1 - self.config.center_momentum)
        if "patch" in sums:
            self.patch_center.lerp_(sums["patch"] / sums["images"], 1 - self.config.patch_center_momentum)

    def warning(self, lines: Sequence[Mapping[str, float]]) -> str | None:
        """Whether the teacher collapses, and what to do."""
        return distill.collapse_warning(lines, len(self.center), len(self.patch_center))

    def blocks(self) -> list[nn.Module]:
        return [*self.student.vit.blocks, *self.teacher.vit.blocks]

    def backbone(self) -> ViT:
        return self.teacher.vit

    def companions(self) -> dict[str, nn.Module]:
        """The student, whose scores are logged beside the teacher's."""
        return {"student": self.student.vit}
