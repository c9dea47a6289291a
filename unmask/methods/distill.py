"""What DINO and iBOT share: the loss over pairs of views, the temperature, and the health of a teacher.

A teacher that says the same of every image teaches nothing, and the loss does not show it: it falls
best of all then. Two ways lead there. Without centering one prototype takes every image (entropy 0);
without sharpening every image gets the uniform distribution (entropy ln K). In both the information
between image and prototype, H(mean P) - mean H(P), goes to 0; that is what the warning looks at.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .. import passes
from ..blocks import Compilable, compiled
from ..positions import grid_of
from ..schedules import Progress
from ..views import View, expand
from ..vit import ViTConfig

WINDOW = 10
"""log lines that must agree before a warning"""
INFORMATION = 0.25
"""nats between image and prototype under which a teacher says the same of every image"""
SAMPLES = 512
"""outputs of a micro-batch that the health metrics look at, to bound their cost"""


def cls_loss(teacher: Float[Tensor, "G B K"], student: Float[Tensor, "V B K"]) -> Float[Tensor, ""]:
    """Mean of H(t_q, s_v) over images and all pairs of views except q = v: 22 for 2 globals and 10 locals.

    Args:
        teacher: probabilities; student: log-probabilities, the teacher's views first.
    """
    pairs = -torch.einsum("qbk,vbk->qv", teacher, student) / teacher.shape[1]  # [G V] cross-entropies
    other = 1 - torch.eye(*pairs.shape, device=pairs.device)
    return (pairs * other).sum() / (pairs.numel() - len(pairs))


class PatchLoss(Compilable):
    """The weighted sum of H(softmax((t - C) / tau), softmax(s / student_tau)), and `observed` of it, as "patch_"."""

    def forward(
        self,
        teacher: Float[Tensor, "M K"],
        center: Float[Tensor, "K"],
        tau: float,
        student: Float[Tensor, "M K"],
        student_tau: float,
        weight: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Score the student.

        Args:
            teacher, student: logits of the same patches.
            center: C.
            tau, student_tau: temperatures.
            weight: of each patch.
        """
        some = slice(None, None, _every(len(teacher)))
        if passes.at_once(student) and passes.at_once(teacher):
            loss, *seen = passes.distill(teacher, center, tau, student, student_tau, weight, some.step)
            looked_at = float(len(range(0, len(teacher), some.step)))
            names = ("patch_taken", "patch_probability", "patch_entropies", "patch_agreed")
            return loss, {"patch_samples": torch.full((), looked_at)} | dict(zip(names, seen, strict=True))
        score, temperature = self.compiled or cross_entropies, center.new_full((), tau)  # it changes with epochs
        sharp = (teacher[some].float() - center) / tau
        seen = _observe(sharp.softmax(-1), sharp, student[some], "patch_")
        return (weight * score(teacher, center, temperature, student, student_tau)).sum(), seen

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the cross-entropies: from both logits to both ends in a pass or two."""
        self.compiled = compiled(cross_entropies, (0, 3), *args, **kwargs)


def cross_entropies(
    teacher: Float[Tensor, "M K"],
    center: Float[Tensor, "K"],
    tau: Float[Tensor, ""],
    student: Float[Tensor, "M K"],
    student_tau: float,
) -> Float[Tensor, "M"]:
    """H(softmax((t - C) / tau), softmax(s / student_tau)) of each row, in fp32."""
    t = ((teacher.float() - center) / tau).softmax(-1)
    return -(t * (student.float() / student_tau).log_softmax(-1)).sum(-1)


def koleo(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Minus the mean log distance to the nearest other sample, on the unit sphere (DINOv2, section 4)."""
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=-1)
        nearest = (x @ x.T).detach().fill_diagonal_(-2).argmax(1)
        return -(torch.linalg.vector_norm(x - x[nearest] + 1e-8, dim=1) + 1e-8).log().mean()


def within(most: float, part: float | None, epochs: float) -> float:
    """Epochs of a phase at the beginning of a run: `most`, or, where that is less, a part of the run."""
    return most if part is None else min(most, part * epochs)


def warmed_up(first: float, final: float, epochs: float, at: Progress, start: int = 0) -> float:
    """The temperature of this epoch: `start` epochs constant, then linspace(first, final, epochs), then final.

    Epochs are whole, at least one if any. A warm-up that does not fit into the run is shortened to the run's
    whole epochs, where the original fails.
    """
    epochs = min(max(round(epochs), 1) if epochs else 0, max(int(at.epochs) - start, 1))
    done = int(at.epoch) - start
    if done >= epochs:
        return final
    return first + (final - first) * max(done, 0) / max(epochs - 1, 1)


def check_crops(views: tuple[View, ...], globals_: int, masks: int, vit: ViTConfig) -> None:
    """Refuse crops that student and teacher cannot share, by value, place and cure.

    Args:
        views: the policy; the first `globals_` crops are the teacher's.
        masks: how many there are: one a global crop, or none.
        vit: the backbone.
    """
    crops = expand(views)
    if not 1 <= globals_ <= len(crops) or masks not in (0, globals_):
        raise ValueError(
            f"{masks} masks and {len(crops)} crops for {globals_} global crops; give one mask each, or none (DINO)"
        )
    if globals_ == len(crops) == 1:
        raise ValueError("one crop has no other view to agree with; give a second global view or local crops")
    for view in crops[:globals_]:
        if view.shape != vit.image_hw:
            raise ValueError(
                f"a global view is {view.shape} px and the ViT expects {vit.image_hw}; "
                "give --method.views.0.size, --method.views.1.size and --method.vit.image-size the same"
            )
    for view in crops[globals_:]:
        grid_of(view.shape, vit.patch_hw)


def check_heads(student: int, teacher: int) -> None:
    """Refuse patch prototypes, of which student and teacher have unequal numbers, by value and cure."""
    if student != teacher:
        raise ValueError(
            f"the student has {student} patch prototypes and the teacher {teacher}; leave "
            "--method.patch-prototypes out, or share neither head"
        )


def traps(epochs: float, warmup: float, freeze: float, start: int, unled: bool) -> list[str]:
    """What to say before a run whose settings suit longer ones, or whose student leads its teacher in part.

    Args:
        epochs: of the run.
        warmup: epochs of the teacher's temperature.
        freeze: epochs in which the prototypes stay as they began.
        start: epochs without masks.
        unled: the student's patch prototypes have no counterpart in the teacher.
    """
    said = []
    if warmup > epochs:
        said.append(
            f"the teacher's temperature warms up in {warmup:g} epochs and the run has {epochs:.3g}: shortened to these"
        )
    if freeze >= epochs:
        said.append(
            f"the prototypes stay frozen for {freeze:g} epochs, which is the whole run: "
            f"lower --method.freeze-last-layer to {0.05 * epochs:.2g}"
        )
    if start >= epochs:
        said.append(
            f"patches are hidden after {start} epochs, and the run has {epochs:.3g}: there is no patch loss at all; "
            "lower --method.patch-start-epoch"
        )
    if unled:
        said.append(
            "the student's patch prototypes never reach its teacher: leave --method.shared-head-teacher out, "
            "or share both heads"
        )
    return said


@torch.no_grad()
def observed(
    teacher: Float[Tensor, "S K"], logits: Float[Tensor, "S K"], student: Float[Tensor, "S K"], prefix: str = ""
) -> dict[str, Tensor]:
    """What `health` needs to know of one micro-batch, to be added over micro-batches and ranks.

    Args:
        teacher: probabilities P_t, centered and sharpened; at most about SAMPLES of them are looked at.
        logits: whose softmax they are.
        student: logits or log-probabilities, for the same images seen differently.
        prefix: in front of each name.
    """
    some = slice(None, None, _every(len(teacher)))
    return _observe(teacher[some], logits[some], student[some], prefix)


def _observe(
    teacher: Float[Tensor, "S K"], logits: Float[Tensor, "S K"], student: Float[Tensor, "S K"], prefix: str
) -> dict[str, Tensor]:
    samples, k = teacher.shape
    best = teacher.argmax(-1)
    top = best[:, None]
    lse = logits.gather(-1, top) - teacher.gather(-1, top).log()  # log sum exp: of log P_t no other is needed
    return {
        f"{prefix}samples": torch.full((), float(samples), device=teacher.device),
        f"{prefix}taken": torch.zeros(k, device=teacher.device).index_add_(0, best, torch.ones_like(best).float()),
        f"{prefix}probability": teacher.sum(0),
        f"{prefix}entropies": lse.sum() - (teacher * logits).sum(),
        f"{prefix}agreed": (best == student.argmax(-1)).float().sum(),
    }


def _every(samples: int) -> int:
    return samples // SAMPLES + 1


@torch.no_grad()
def health(sums: Mapping[str, Tensor], centers: Mapping[str, Float[Tensor, "_"]]) -> dict[str, Tensor]:
    """Describe the teacher's outputs in one step, over all micro-batches and ranks (DINO, section 5.3).

    Args:
        sums: from `observed`.
        centers: C by prefix; of those without sums nothing is said.
    Returns:
        by prefix and name: entropy: mean over samples of H(P_t), in [0, ln K]; kl_uniform: ln K - H(mean of
        P_t), which has a floor of about ln K - ln S - entropy in small batches; usage: fraction of the K
        prototypes that are some sample's largest; agreement: fraction of samples whose largest prototype is
        also the student's (iBOT's log has it of raw outputs, where the teacher's are centered here, and of the
        first global crop alone, against the second); center_norm: |C|. The first four are 0 without samples.
    """
    found = {}
    for prefix, center in centers.items():
        if f"{prefix}samples" not in sums:
            continue
        samples, mean = sums[f"{prefix}samples"], sums[f"{prefix}probability"]
        count = samples.clamp(min=1)
        spread = math.log(len(mean)) - torch.special.entr(mean / count).sum()
        found |= {
            f"{prefix}entropy": sums[f"{prefix}entropies"] / count,
            f"{prefix}kl_uniform": samples.clamp(max=1) * spread,
            f"{prefix}usage": sums[f"{prefix}taken"].clamp(max=1).mean(),
            f"{prefix}agreement": sums[f"{prefix}agreed"] / count,
            f"{prefix}center_norm": torch.linalg.vector_norm(center),
        }
    return found


def collapse_warning(lines: Sequence[Mapping[str, float]], prototypes: int, patch_prototypes: int) -> str | None:
    """Say so when the last log lines show a teacher that collapses, and what to do.

    Args:
        lines: with what `health` tells, oldest first; of patches those with a `loss_patch` count, which hid
            some. A fresh network knows little too, and large runs pass a nearly uniform phase: leave out the
            lines of the rate's warm-up.
        prototypes: K of the [CLS] token.
        patch_prototypes: K of patches.
    Returns:
        a text that contains "collapse", or None while all is well or fewer than WINDOW lines are given.
    """
    patches = [line for line in lines if line.get("loss_patch")]
    return _collapsed(lines, prototypes, "") or _collapsed(patches, patch_prototypes, "patch_")


def _collapsed(window: Sequence[Mapping[str, float]], prototypes: int, prefix: str) -> str | None:
    if len(window) < WINDOW:
        return None
    recent = window[-WINDOW:]
    most = math.log(prototypes)
    entropies = [line[f"{prefix}entropy"] for line in recent]
    spreads = [line[f"{prefix}kl_uniform"] for line in recent]
    if max(most - spread - entropy for spread, entropy in zip(spreads, entropies, strict=True)) > INFORMATION:
        return None
    entropy = sum(entropies) / WINDOW
    what, option = ("patch", "--method.patch-") if prefix else ("image", "--method.")
    seen = f"in the last {WINDOW} log lines every {what} gets the same output (entropy {entropy:.2f} of {most:.2f})"
    if entropy > most / 2:
        return (
            f"collapse to the uniform distribution: {seen}. Sharpen the teacher: lower "
            f"{option}teacher-temperature (0.04, then 0.02) or lengthen --method.warmup-temperature-epochs "
            "(and -fraction); a teacher that stays so does not recover: start again"
        )
    return (
        f"collapse to one prototype: {seen}. Let the center follow: lower {option}center-momentum (0.9), "
        "lower --optim.base-lr, lengthen --method.freeze-last-layer (and --method.freeze-fraction), keep "
        "--method.norm-last-layer True; a teacher that stays so does not recover: start again"
    )
