"""What DINO and iBOT share: the loss over pairs of views, the temperature, and the health of a teacher.

A teacher that says the same of every image teaches nothing, and the loss does not show it: it falls
best of all then. Two ways lead there. Without centering one prototype takes every image (entropy 0);
without sharpening every image gets the uniform distribution (entropy ln K). In both the information
between image and prototype, H(mean P) - mean H(P), goes to 0; that is what the warning looks at.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..positions import grid_of
from ..schedules import Progress
from ..views import View, expand
from ..vit import ViTConfig

WINDOW = 10
"""log lines that must agree before a warning"""
INFORMATION = 0.25
"""nats between image and prototype under which a teacher says the same of every image"""


def cls_loss(teacher: Float[Tensor, "G B K"], student: Float[Tensor, "V B K"]) -> Float[Tensor, ""]:
    """Mean of H(t_q, s_v) over images and all pairs of views except q = v: 22 for 2 globals and 10 locals.

    Args:
        teacher: probabilities; student: log-probabilities, the teacher's views first.
    """
    pairs = -torch.einsum("qbk,vbk->qv", teacher, student) / teacher.shape[1]  # [G V] cross-entropies
    other = 1 - torch.eye(*pairs.shape, device=pairs.device)
    return (pairs * other).sum() / (pairs.numel() - len(pairs))


def koleo(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Minus the mean log distance to the nearest other sample, on the unit sphere (DINOv2, section 4)."""
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=-1)
        nearest = (x @ x.T).detach().fill_diagonal_(-2).argmax(1)
        return -(torch.linalg.vector_norm(x - x[nearest] + 1e-8, dim=1) + 1e-8).log().mean()


def warmed_up(first: float, final: float, epochs: int, at: Progress, start: int = 0) -> float:
    """The temperature of this epoch: `start` epochs constant, then linspace(first, final, epochs), then final.

    A warm-up that does not fit into the run is shortened to its whole epochs, where the original fails.
    """
    epochs = min(epochs, max(int(at.epochs) - start, 1))
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


def traps(epochs: float, warmup: int, freeze: float, unled: bool) -> list[str]:
    """What to say before a run whose settings suit longer ones, or whose student leads its teacher in part.

    Args:
        epochs: of the run.
        warmup: epochs of the teacher's temperature.
        freeze: epochs in which the prototypes stay as they began.
        unled: the student's patch prototypes have no counterpart in the teacher.
    """
    said = []
    if warmup > epochs:
        said.append(
            f"the teacher's temperature warms up in {warmup} epochs and the run has {epochs:.3g}: shortened to these"
        )
    if freeze >= epochs:
        said.append(
            f"the prototypes stay frozen for {freeze:g} epochs, which is the whole run: "
            f"lower --method.freeze-last-layer to {0.05 * epochs:.2g}"
        )
    if unled:
        said.append(
            "the student's patch prototypes never reach its teacher: leave --method.shared-head-teacher out, "
            "or share both heads"
        )
    return said


@torch.no_grad()
def health(
    teacher: Float[Tensor, "S K"], student: Float[Tensor, "S K"], center: Float[Tensor, "K"], prefix: str = ""
) -> dict[str, Tensor]:
    """Describe the teacher's outputs in one micro-batch (DINO, section 5.3; agreement: iBOT's log).

    Args:
        teacher: probabilities P_t, centered and sharpened.
        student: logits or log-probabilities, for the same images seen differently.
        center: C.
        prefix: in front of each name.
    Returns:
        entropy: mean over samples of H(P_t), in [0, ln K]; kl_uniform: ln K - H(mean of P_t), which has
        a floor of about ln K - ln S - entropy in small batches; usage: fraction of the K prototypes that
        are some sample's largest; agreement: fraction of samples whose largest prototype is also the
        student's; center_norm: |C|. All 0 when S is 0.
    """
    samples, k = teacher.shape
    count = max(samples, 1)
    best = teacher.argmax(-1)
    used = torch.zeros(k, device=teacher.device).index_fill_(0, best, 1.0)
    mean = teacher.sum(0) / count
    kl = math.log(k) - torch.special.entr(mean).sum() if samples else mean.sum()
    return {
        f"{prefix}entropy": torch.special.entr(teacher).sum() / count,
        f"{prefix}kl_uniform": kl,
        f"{prefix}usage": used.mean(),
        f"{prefix}agreement": (best == student.argmax(-1)).float().sum() / count,
        f"{prefix}center_norm": torch.linalg.vector_norm(center),
    }


def collapse_warning(window: Sequence[Mapping[str, float]], prototypes: int) -> str | None:
    """Say so when the last log lines show a teacher that collapses, and what to do.

    Args:
        window: log lines with `entropy` and `kl_uniform`, oldest first. A fresh network knows little
            too, and large runs pass a nearly uniform phase: leave out the lines of the rate's warm-up.
        prototypes: K of the [CLS] token.
    Returns:
        a text that contains "collapse", or None while all is well or fewer than WINDOW lines are given.
    """
    if len(window) < WINDOW:
        return None
    recent = window[-WINDOW:]
    most = math.log(prototypes)
    if max(most - line["kl_uniform"] - line["entropy"] for line in recent) > INFORMATION:
        return None
    entropy = sum(line["entropy"] for line in recent) / WINDOW
    seen = f"in the last {WINDOW} log lines every image gets the same output (entropy {entropy:.2f} of {most:.2f})"
    if entropy > most / 2:
        return (
            f"collapse to the uniform distribution: {seen}. Sharpen the teacher: lower "
            "--method.teacher-temperature (0.04, then 0.02) or lengthen --method.warmup-temperature-epochs; "
            "a teacher that stays so does not recover: start again"
        )
    return (
        f"collapse to one prototype: {seen}. Let the center follow: lower --method.center-momentum (0.9), "
        "lower --optim.base-lr, lengthen --method.freeze-last-layer, keep --method.norm-last-layer True; "
        "a teacher that stays so does not recover: start again"
    )
