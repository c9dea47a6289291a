"""The optimizer: groups with their schedules, clipping, AdamW and LARS."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from . import passes
from .config import OptimConfig
from .methods.base import Group, local


def build_optimizer(groups: list[Group], config: OptimConfig, own: bool = False) -> Optimizer:
    """Make the optimizer over a method's groups.

    Args:
        groups: of the method.
        config: of the optimizer.
        own: AdamW by the kernel that works with `passes.project`.

    Each of its param_groups keeps the group's `names`, `decay` and `lr_scale`, which
    `set_schedules` and checkpoints read.
    """
    params = [
        {"params": g.parameters, "names": g.names, "decay": g.decay, "lr_scale": g.lr_scale} for g in groups if g.names
    ]
    if not params:
        raise ValueError("nothing to train: every parameter of the method is frozen")
    if config.name == "lars":
        return LARS(params, momentum=config.momentum)
    if config.name == "sgd":
        return torch.optim.SGD(params, lr=0.0, momentum=config.momentum)
    if own:
        return passes.AdamW(params, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=0.0)
    # fused: one pass over memory instead of a dozen, of shards too
    return torch.optim.AdamW(params, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True)


def set_schedules(optimizer: Optimizer, lr: float, weight_decay: float) -> None:
    """Give every group its learning rate and, if it decays, the weight decay of this step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decay"] else 0.0


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], config: OptimConfig) -> Float[Tensor, ""]:
    """Clip gradients in place, as configured, and return their global norm before that.

    global: one factor for all, min(1, clip / (norm + 1e-6)) (BEiT 3.0). tensor: each parameter by
    its own norm (DINO and iBOT 3.0). Nothing is read back to the host.
    """
    trained = [p for p in parameters if p.grad is not None]
    grads = [p.grad for p in trained if p.grad is not None]
    norms = _norms(grads, [p.dtype for p in trained])
    total = torch.linalg.vector_norm(norms)
    if config.clip is not None:
        limits = norms if config.clip_by == "tensor" else total
        factors = (config.clip / (limits + 1e-6)).clamp(max=1.0)
        each = list(factors.unbind()) if config.clip_by == "tensor" else [factors] * len(grads)
        here: list[tuple[Tensor, Tensor]] = []
        for parameter, grad, factor in zip(trained, grads, each, strict=True):
            if grad.dtype == parameter.dtype:
                here.append((local(grad), factor.to(grad.dtype)))
            else:  # `passes.AdamW.small_gradients`
                passes.scale(grad, factor)
        if here:
            alike = config.clip_by == "global" and all(f.dtype == factors.dtype for _, f in here)
            torch._foreach_mul_([g for g, _ in here], factors if alike else [f for _, f in here])
    return total


def _norms(tensors: list[Tensor], of: list[torch.dtype]) -> Float[Tensor, "_"]:
    """The norm of each gradient, of weights of these types; of sharded ones with a single exchange between ranks."""
    if any(t.dtype != dtype for t, dtype in zip(tensors, of, strict=True)):
        return passes.norms(tensors)
    norms = torch.stack(torch._foreach_norm([local(t).float() for t in tensors]))
    sharded = next((t for t in tensors if isinstance(t, DTensor)), None)
    if sharded is None:
        return norms
    squares = norms.square()
    dist.all_reduce(squares, group=sharded.device_mesh.get_group())
    return squares.sqrt()


class LARS(Optimizer):
    """Momentum SGD with a trust ratio per tensor, as MAE's `util/lars.py` for linear probes.

    d = grad + weight_decay * p; tensors with ndim > 1 scale d by 0.001 |p| / |d| (1 where either is
    zero) and 1-D ones take plain d, undecayed; mu = momentum * mu + d; p = p - lr * mu.
    """

    def __init__(self, params: Iterable, lr: float = 0.0, weight_decay: float = 0.0, momentum: float = 0.9):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.trust = 0.001

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim > 1:
                    update = update.add(p, alpha=group["weight_decay"])
                    size, change = torch.linalg.vector_norm(p), torch.linalg.vector_norm(update)
                    ratio = torch.where((size > 0) & (change > 0), self.trust * size / change, torch.ones_like(size))
                    update = update * ratio
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                p.sub_(state["momentum_buffer"], alpha=group["lr"])


def largest_divisor(n: int, limit: float) -> int:
    """The largest divisor of n that is at most `limit`, and at least 1."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return max((d for d in {*small, *(n // d for d in small)} if d <= limit), default=1)
