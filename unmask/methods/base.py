"""What a pre-training method is, and what passes between it and the loop."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..schedules import Progress

__all__ = ["Batch", "Group", "Method", "Output", "Progress", "ema"]


class Batch(NamedTuple):
    """One micro-batch on the device. A NamedTuple, because FSDP2 finds tensors through pytrees."""

    views: tuple[Float[Tensor, "_ C _ _"], ...]
    """normalized crops, in the policy's order; a view of count n fills n places"""
    twins: tuple[Float[Tensor, "_ C _ _"], ...] = ()
    """the same crops rendered again, in [0, 1]: the tokenizer's input (BEiT)"""
    masks: tuple[Bool[Tensor, "B _"], ...] = ()
    """one per masked view, True = hidden"""
    hidden: tuple[Int[Tensor, "_"], ...] = ()
    """flat indices of True in B*N, counted on the CPU so that the device is never asked to wait"""
    label: Int[Tensor, "B"] | None = None
    """class of each image, -1 unknown"""
    own: Float[Tensor, "B"] | None = None
    """share of an image's own label where images are mixed; the rest is its neighbor's (mixing.py)"""
    position: Int[Tensor, "B"] | None = None
    """global sample positions: they name every random draw of this batch"""
    shares: tuple[Float[Tensor, ""], ...] = ()
    """per masked view: this micro-batch's hidden patches over the mean of all micro-batches of the
    step, on all ranks; a loss averaged over hidden patches times this is the global mean. None for a
    step's only micro-batch, whose share is 1"""


class Output(NamedTuple):
    """What one forward pass returns."""

    loss: Float[Tensor, ""]
    """mean over this micro-batch, differentiable"""
    metrics: dict[str, Tensor]
    """scalars to average and log; detached, fp32, still on the device"""
    sums: dict[str, Tensor] = {}
    """statistics to add over micro-batches and ranks (iBOT's centers and health)"""


class Group(NamedTuple):
    """Parameters that share a learning-rate scale and a weight decay."""

    names: list[str]
    parameters: list[nn.Parameter]
    decay: bool
    """whether the run's weight decay (and its schedule) applies"""
    lr_scale: float = 1.0
    """factor on the learning rate: layer decay"""


class Method(nn.Module):
    """A pre-training method: networks, a loss, and what follows an optimizer step.

    `forward` is the only door for training: DDP and FSDP2 hook it. `parallel.wrap` shards `blocks()`
    and then this root, so blocks are called as modules and all else inside forward is free.
    """

    def forward(self, batch: Batch, at: Progress) -> Output:
        """Compute the loss of one micro-batch."""
        raise TypeError(f"{type(self).__name__} has no forward(batch, at) -> Output")

    def parameter_groups(self) -> list[Group]:
        """Decay and no-decay groups: decayed if ndim > 1 and not a bias (timm's rule, MAE's).

        So `cls_token` and `mask_token` are decayed and frozen parameters are left out.
        """
        return decay_groups(self)

    def before_step(self, at: Progress) -> None:
        """Change gradients after clipping, before the optimizer. Default: nothing."""

    def after_step(self, at: Progress, sums: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Move what no gradient moves: teachers, centers. Default: nothing.

        Args:
            sums: `Output.sums`, added over micro-batches and ranks.
        Returns:
            scalars to log of the whole step, the same on all ranks; None: there are none.
        """

    def warning(self, lines: Sequence[Mapping[str, float]]) -> str | None:
        """What the last log lines, oldest first, say is going wrong, and the cure; None where all is well."""
        return None

    def blocks(self) -> Iterable[nn.Module]:
        """The units to compile, shard and recompute: all Transformer blocks, a teacher's too."""
        raise TypeError(f"{type(self).__name__} has no blocks()")

    def backbone(self) -> nn.Module:
        """The network to evaluate and export; of a student and a teacher, the teacher."""
        raise TypeError(f"{type(self).__name__} has no backbone()")

    def companions(self) -> dict[str, nn.Module]:
        """Networks to evaluate beside the backbone while training, by name: a student. Default: none."""
        return {}


def decay_groups(module: nn.Module, skip: Iterable[str] = ()) -> list[Group]:
    """Split trainable parameters by timm's weight-decay rule.

    Args:
        module: whose named parameters are split; frozen ones are left out.
        skip: last parts of names that never decay, e.g. `{"pos_embed", "cls_token"}`.
    Returns:
        two groups, the undecayed (1-D, `.bias`, `skip`) and the decayed.
    """
    undecayed, decayed = Group([], [], decay=False), Group([], [], decay=True)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            last = name.rpartition(".")[2]
            group = undecayed if parameter.ndim <= 1 or last == "bias" or last in skip else decayed
            group.names.append(name)
            group.parameters.append(parameter)
    return [undecayed, decayed]


@torch.no_grad()
def ema(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move `average` towards `source`: a <- m a + (1 - m) s, over parameters common by name.

    Works on local shards: both modules must be sharded alike. Buffers are not averaged.

    Args:
        average: the slow network; its parameters move in place, in fp32.
        source: the fast network, after its optimizer step.
        momentum: the fraction kept, in [0, 1]; iBOT 0.996 -> 1.
    Raises:
        ValueError: no parameter has the same name in both.
    """
    sources = dict(source.named_parameters())
    pairs = [(local(a), local(sources[name])) for name, a in average.named_parameters() if name in sources]
    if not pairs:
        raise ValueError("ema: the two networks share no parameter name; pass both unwrapped")
    torch._foreach_lerp_([a for a, _ in pairs], [s for _, s in pairs], 1.0 - momentum)


def local(tensor: Tensor) -> Tensor:
    """The shard of a DTensor that lives here, or the tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local is not None else tensor
