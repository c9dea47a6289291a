"""What losses read of wide rows of bf16, each in one pass: a dVAE's codes, MAE's pixels, iBOT's targets.

The methods say the same in words of PyTorch's (`relaxation.py`, `mae.py`, `distill.py`): those are used where these
can't be, and are what these are tested against.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import BFloat16, Float, Int64
from torch import Tensor

from .build import addresses, library, ready


class Found(NamedTuple):
    """Where `sample` writes, for M rows of logits."""

    soft: BFloat16[Tensor, "M K"]
    """softmax((logits + gumbel) / temperature)"""
    lse: Float[Tensor, "M 1"]
    """log sum exp of the logits"""
    kl: Float[Tensor, "M 1"]
    """log K less the entropy of their softmax"""
    ids: Int64[Tensor, "M 1"]
    """their argmax"""


def at_once(rows: Float[Tensor, "M K"]) -> bool:
    """Whether `sample`, `sample_backward` or `pixel_error` are for these logits or pixels."""
    return type(rows) is Tensor and rows.device.type == "cpu" and rows.dtype == torch.bfloat16 and ready()


def pixel_error(
    pixels: BFloat16[Tensor, "M P"],
    image: Float[Tensor, "B C h w"],
    hidden: Int64[Tensor, "M"],
    patch: tuple[int, int],
    normalized: bool,
) -> Float[Tensor, ""]:
    """MAE's loss, the mean squared error on hidden patches, from the image itself.

    Args:
        pixels: guesses, within a patch by row, column and channel.
        image: what is to be guessed.
        hidden: flat indices of B*N.
        patch: its height and width in pixels.
        normalized: compare with pixels less their patch's mean, over its deviation.
    """
    return _PixelError.apply(pixels, image, hidden, patch, normalized)  # pyright: ignore[reportReturnType]


def sample(
    logits: BFloat16[Tensor, "M K"], noise: Float[Tensor, "M K"], uniform: bool, temperature: float, found: Found
) -> Float[Tensor, "K"]:
    """All that a discrete VAE needs of its logits.

    Args:
        noise: uniform on [0, 1) if so said, otherwise Gumbel's.
    Returns:
        the sum of softmax(logits).
    """
    logits, noise = logits.contiguous(), noise.float().contiguous()
    (rows, width), total = logits.shape, noise.new_empty(logits.shape[1])
    given, where = addresses(logits, noise), addresses(*found, total)
    library().sample_forward(torch.get_num_threads(), rows, width, *given, int(uniform), temperature, *where)
    return total


def sample_backward(
    of_soft: BFloat16[Tensor, "M K"],
    of_kl: Float[Tensor, "M 1"],
    logits: BFloat16[Tensor, "M K"],
    soft: BFloat16[Tensor, "M K"],
    lse: Float[Tensor, "M 1"],
    kl: Float[Tensor, "M 1"],
    temperature: float,
    found: BFloat16[Tensor, "M K"],
) -> None:
    """Write the gradient of the logits into `found`."""
    of_soft, of_kl, logits = of_soft.contiguous(), of_kl.float().contiguous(), logits.contiguous()
    given = addresses(of_soft, of_kl, logits, soft, lse, kl)
    library().sample_backward(torch.get_num_threads(), *logits.shape, *given, temperature, *addresses(found))


class Distilled(NamedTuple):
    """The cross-entropy, and what is observed of targets; see `methods/distill.py`."""

    loss: Float[Tensor, ""]
    """has a gradient for the student's logits"""
    taken: Float[Tensor, "K"]
    probability: Float[Tensor, "K"]
    entropies: Float[Tensor, ""]
    agreed: Float[Tensor, ""]


def distill(
    teacher: BFloat16[Tensor, "M K"],
    center: Float[Tensor, "K"],
    tau: float,
    student: BFloat16[Tensor, "M K"],
    student_tau: float,
    weight: Float[Tensor, "M"],
    every: int,
) -> Distilled:
    """-sum weight * softmax((teacher - center) / tau) * log softmax(student / student_tau).

    Args:
        teacher, student: logits.
        center: subtracted from the teacher's.
        tau, student_tau: temperatures.
        weight: of each row.
        every: rows from one that is observed to the next.
    """
    return Distilled(*_Distill.apply(teacher, center, tau, student, student_tau, weight, every))


class _PixelError(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, pixels: Tensor, image: Tensor, hidden: Tensor, patch: tuple[int, int], normalized: bool
    ) -> Tensor:
        pixels, image, hidden = pixels.contiguous(), image.float().contiguous(), hidden.contiguous()
        errors, total = torch.empty_like(pixels), torch.zeros((), dtype=torch.float64)
        count, step = pixels.numel(), 2 / max(1, pixels.numel())  # the gradient, but for the one of the loss
        library().pixel_error(
            torch.get_num_threads(), len(hidden), *addresses(image, hidden), *image.shape[1:], *patch, int(normalized),
            *addresses(pixels), step, *addresses(errors, total),
        )  # fmt: skip
        ctx.save_for_backward(errors)
        return (total / count).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0] * grad, None, None, None, None


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        teacher: Tensor,
        center: Tensor,
        tau: float,
        student: Tensor,
        student_tau: float,
        weight: Tensor,
        every: int,
    ) -> tuple[Tensor, ...]:
        teacher, student, weight = teacher.contiguous(), student.contiguous(), weight.float().contiguous()
        of_student, observed = torch.empty_like(student), center.new_empty(2, student.shape[1])
        cross, entropies, agreed = sums = torch.zeros(3, dtype=torch.float64).unbind()
        library().distill(
            torch.get_num_threads(), *student.shape, *addresses(teacher, center), 1 / tau,
            *addresses(student), 1 / student_tau, *addresses(weight), every,
            *addresses(of_student, cross, *observed, entropies, agreed),
        )  # fmt: skip
        ctx.save_for_backward(of_student)
        found = (*observed.unbind(), entropies.float(), agreed.float())
        ctx.mark_non_differentiable(*found)
        return sums[0].float(), *found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, ctx.saved_tensors[0] * grad, None, None, None
