"""A block's weights in a step: their products, the norms of their gradients and AdamW, with few passes over memory.

Under autocast a step reads a weight and writes it in bf16, writes its gradient in bf16 and reads it and writes it in
fp32, reads that for its norm, once more to clip it and again in AdamW. Here AdamW leaves the bf16 copy that the next
step's products read, gradients may stay in bf16, as the products gave them, and what clips them goes with them.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import ParamsT
from torch.utils.weak import WeakTensorKeyDictionary

from .build import library


class Half(NamedTuple):
    """A weight's place for its copy in bf16."""

    owner: "weakref.ref[AdamW]"
    copy: BFloat16[Tensor, "..."] | None = None
    version: int = -1
    """of the weight that was copied"""


_HALVES = WeakTensorKeyDictionary()
"""by weight: of those that an AdamW of ours moves. Others (PyTorch's fused one, FSDP2's gathering, writes through
`.data`) change weights without a new version"""
SCALE = "scale"
"""attribute of a gradient: what AdamW multiplies it by"""


def project(x: BFloat16[Tensor, "*rows D"], weight: Float[Tensor, "F D"]) -> BFloat16[Tensor, "*rows F"]:
    """X W^T in bf16, with the copy of the weight that AdamW left; the weight's gradient is in bf16, if it may be.

    It may where `weight.grad_dtype` is bf16 (see `AdamW.small_gradients`); elsewhere autograd makes it fp32.
    """
    return _Project.apply(x, weight)  # pyright: ignore[reportReturnType]


def half(weight: Float[Tensor, "..."]) -> BFloat16[Tensor, "..."]:
    """The weight in bf16; of one that our AdamW moves the copy that it left, unless others have moved it since."""
    found = _HALVES.get(weight)
    if found is None or found.owner() is None or torch.is_inference_mode_enabled():
        return weight.detach().to(torch.bfloat16)
    if found.copy is not None and found.version == weight._version:
        return found.copy
    copy = weight.detach().to(torch.bfloat16)
    _HALVES[weight] = Half(found.owner, copy, weight._version)
    return copy


def norms(gradients: Sequence[Tensor]) -> Float[Tensor, "_"]:
    """The norm of each gradient, in bf16 or fp32."""
    found = torch.empty(len(gradients), dtype=torch.float64)
    gradients = [gradient.contiguous() for gradient in gradients]
    lists = _Lists(gradients)
    library().squares_of(
        torch.get_num_threads(), lists.count, lists.sizes, lists(gradients), lists.small, found.data_ptr()
    )
    return found.sqrt_().float()


def scale(gradient: Tensor, factor: Float[Tensor, ""]) -> None:
    """Multiply a gradient in bf16: the factor goes with it, as a product in bf16 would be rounded once more."""
    setattr(gradient, SCALE, float(factor))


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW for contiguous fp32 weights on a CPU: the same state, and numbers but for rounding."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
        for weight in (p for group in self.param_groups for p in group["params"]):
            if not weight.is_contiguous() or weight.dtype != torch.float32 or weight.device.type != "cpu":
                raise ValueError(
                    f"our AdamW wants contiguous fp32 weights on a CPU, this one is {weight.dtype} on {weight.device} "
                    f"with strides {weight.stride()}; use torch.optim.AdamW"
                )
            _HALVES[weight] = Half(weakref.ref(self))

    def small_gradients(self, weights: Sequence[Tensor]) -> None:
        """Let the gradients of these stay in bf16 while this optimizer lives.

        For one micro-batch a step, as sums of several would be rounded. PyTorch can do so from 2.10 on; before,
        nothing happens.
        """
        if hasattr(Tensor, "grad_dtype"):
            for weight in weights:
                weight.grad_dtype = torch.bfloat16
            weakref.finalize(self, _usual_gradients, list(weights)).atexit = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step(group, weights)

    def _step(self, group: dict[str, Any], weights: list[nn.Parameter]) -> None:
        states, found = [self._state(p) for p in weights], [p.grad for p in weights if p.grad is not None]
        gradients = [grad.contiguous() for grad in found]
        torch._foreach_add_([state["step"] for state in states], 1)
        times = np.array([float(state["step"]) for state in states])
        (beta1, beta2), rate = group["betas"], float(group["lr"])
        scales = np.array([getattr(g, SCALE, 1.0) for g in found], np.float32)
        steps = (rate / (1 - beta1**times)).astype(np.float32)
        unbiases = (1 / np.sqrt(1 - beta2**times)).astype(np.float32)
        halves = [_HALVES[p] for p in weights]
        lists = _Lists(gradients)
        library().adamw(
            torch.get_num_threads(), lists.count, lists.sizes, lists(weights), lists(gradients), lists.small,
            lists([s["exp_avg"] for s in states]), lists([s["exp_avg_sq"] for s in states]),
            lists([h.copy for h in halves]), *(a.ctypes.data for a in (scales, steps, unbiases)),
            1 - rate * group["weight_decay"], beta1, beta2, group["eps"],
        )  # fmt: skip
        increment_version(weights)
        increment_version([h.copy for h in halves if h.copy is not None])
        for weight, kept in zip(weights, halves, strict=True):
            _HALVES[weight] = kept._replace(version=weight._version)

    def _state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        return state


def _usual_gradients(weights: list[Tensor]) -> None:
    """What trains these next gets fp32 gradients, as it expects."""
    for weight in weights:
        if _HALVES[weight].owner() is None:
            weight.grad, weight.grad_dtype = None, weight.dtype


class _Lists:
    """Lists of tensors as kernels take them: addresses, sizes, and which are in bf16."""

    def __init__(self, gradients: Sequence[Tensor]):
        self.kept: list[np.ndarray] = []
        self.count = len(gradients)
        self.sizes = self.keep(np.array([g.numel() for g in gradients], np.int64))
        self.small = self.keep(np.array([g.dtype == torch.bfloat16 for g in gradients], np.uint8))

    def keep(self, numbers: np.ndarray) -> int:
        self.kept.append(numbers)
        return numbers.ctypes.data

    def __call__(self, tensors: Sequence[Tensor | None]) -> int:
        return self.keep(np.array([0 if t is None else t.data_ptr() for t in tensors], np.uint64))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        copy = half(weight)
        ctx.save_for_backward(x, copy)
        return F.linear(x, copy)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, copy), rows = ctx.saved_tensors, grad.flatten(0, -2)
        of_x = torch.mm(rows, copy).view(x.shape) if ctx.needs_input_grad[0] else None
        return of_x, torch.mm(rows.mT, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
